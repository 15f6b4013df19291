"""The command inside a shell script, as bash would have run it."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlcli.compat.verl.script import read_script, script_command, with_script
from rlcli.errors import ConfigError

COMMENTED = """
# PPO
python3 -m verl.trainer.main_ppo \\
    algorithm.adv_estimator=gae \\              # instead of grpo
    algorithm.gamma=0.99 \\                     # added
    critic.ppo_epochs=2
"""


def arguments(text: str, env: dict[str, str] | None = None) -> list[str]:
    (command,) = read_script(text, env or {}, name="run.sh")
    return command.arguments


@pytest.mark.parametrize(
    "text",
    [
        'ARGS=(--preset quickstart --seed 4)\n./train.sh "${ARGS[@]}"\n',
        "ARGS=(--preset quickstart)\nARGS+=(--seed 4)\n./train.sh ${ARGS[@]}\n",
        'declare -a ARGS=(\n  --preset quickstart  # small\n  --seed "4"\n)\n'
        './train.sh "${ARGS[@]}" | tee log\n',
        'S=4\nMORE=(--seed $S)\n./train.sh --preset quickstart "${MORE[@]}"\n',
    ],
)
def test_arrays_are_filled_in(text: str) -> None:
    assert arguments(text) == ["--preset", "quickstart", "--seed", "4"]


def test_elements_of_an_array_keep_their_blanks() -> None:
    text = 'A=(run.name="a b" x=1)\nB=("${A[@]}" y=2)\n./train.sh "${B[@]}" z="${A[*]}"\n'
    assert arguments(text) == ["run.name=a b", "x=1", "y=2", "z=run.name=a b x=1"]


def test_an_array_that_is_not_there_is_named() -> None:
    for text in ("", "ARGS=($(ls))\n"):
        (command,) = read_script(f'{text}./train.sh "${{ARGS[@]}}"\n', {}, name="run.sh")
        assert "${ARGS[@]}, an array" in str(command.problem)


def test_every_command_of_a_line_counts(tmp_path: Path) -> None:
    script = tmp_path / "run.sh"
    script.write_text(
        "chmod +x train.sh && ./train.sh a=1 > log && ./train.sh b=2; echo train.sh\n"
    )
    commands = read_script(script.read_text(), {}, name="run.sh")
    assert [command.arguments for command in commands] == [["a=1"], ["b=2"]]
    for name in (f"{script}", f"{script}:1"):
        with pytest.raises(ConfigError, match="line 1 holds 2 training commands"):
            script_command(name, {})


def test_a_script_within_a_script_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "run.sh"
    script.write_text("./train.sh --from-script other.sh\n")
    with pytest.raises(ConfigError, match="itself has --from-script"):
        with_script(["train", "--from-script", str(script)], {})


def test_a_config_path_goes_before_its_name(tmp_path: Path) -> None:
    script = tmp_path / "run.sh"
    script.write_text(
        "python3 -m verl.trainer.main_ppo --config-path=conf --config-name grpo a=1\n"
    )
    wanted = ["train", "--config", "conf/grpo", "a=1"]
    assert with_script(["train", "--from-script", str(script)], {}) == wanted
    assert (
        with_script(["train", "--config-name=grpo", "--config_path", "conf", "a=1"], {}) == wanted
    )
    for words in (["--config-path=conf"], ["--config-name=x", "--config-path"]):
        with pytest.raises(ConfigError, match="DIR/NAME"):
            with_script(["train", *words], {})


def test_comments_after_a_backslash_do_not_end_the_command() -> None:
    assert arguments(COMMENTED) == [
        "algorithm.adv_estimator=gae",
        "algorithm.gamma=0.99",
        "critic.ppo_epochs=2",
    ]


def test_variables_of_the_script_are_filled_in_as_bash_does() -> None:
    text = (
        "a=$HOME/a.parquet\nb='$HOME/b'\nboth=\"['$a', '$b']\"\n"
        'rlcli train data.train_files="$both" x=${NO:-7} y=\'$a\' "$@" z=\\$a\n'
    )
    assert arguments(text, {"HOME": "/h"}) == [
        "data.train_files=['/h/a.parquet', '$HOME/b']",
        "x=7",
        "y=$a",
        "z=$a",
    ]


def test_a_quoted_text_may_have_several_lines() -> None:
    text = 'bash ./train.sh --rm_system_prompt "one\n  two # three" --lr 1e-6 2>&1 | tee log\n'
    assert arguments(text) == ["--rm_system_prompt", "one\n  two # three", "--lr", "1e-6"]


def test_exports_and_prefixes_reach_the_environment(tmp_path: Path) -> None:
    script = tmp_path / "run.sh"
    script.write_text(
        "#!/bin/bash\nset -x\nexport KL_COEF=0.01\nLOCAL=1\n"
        "N_GPUS=2 NNODES=1 ./train.sh --epochs 3;\n"
    )
    env: dict[str, str] = {}
    given = ["train", "--from-script", str(script), "seed=3"]
    assert with_script(given, env) == ["train", "--epochs", "3", "seed=3"]
    assert env == {"KL_COEF": "0.01", "N_GPUS": "2", "NNODES": "1"}


def test_nothing_of_a_script_is_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    script = tmp_path / "run.sh"
    script.write_text(f"rlcli train run.name=$(touch {mark})\n")
    with pytest.raises(ConfigError, match=r"run\.sh:1.*runs nothing of a script"):
        script_command(str(script), {})
    script.write_text(f"NAME=$(touch {mark})\nrlcli train run.name=$NAME\n")
    with pytest.raises(ConfigError, match=r"run\.sh:2: the command uses \$NAME"):
        script_command(str(script), {})
    assert not mark.exists()


def test_several_commands_want_a_line(tmp_path: Path) -> None:
    script = tmp_path / "guide.md"
    script.write_text(f"see `main_ppo.py`\n{COMMENTED}\nIt's this\n\nrlcli train --algo grpo\n")
    with pytest.raises(ConfigError, match=r"start in lines 4, 11\.\nChoose one"):
        with_script(["train", "--from-script", str(script)], {})
    assert with_script(["train", f"--from_script={script}:11"], {}) == ["train", "--algo", "grpo"]


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "cannot read it"), ("echo hello\n", "no training command"), (b"\xff\xfe", "UTF-8")],
)
def test_a_script_without_a_command_is_refused(
    content: str | bytes | None, says: str, tmp_path: Path
) -> None:
    script = tmp_path / "run.sh"
    if content is not None:
        script.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=says) as caught:
        with_script(["train", "--from-script", str(script)], {})
    assert len(str(caught.value).splitlines()) <= 3
