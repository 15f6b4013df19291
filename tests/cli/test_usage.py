"""Wrong command lines: exit 2, a line or two, the nearest name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlcli.cli.main import main
from rlcli.cli.options import OPTIONS, OWN
from rlcli.config.names import FLAG_KEYS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["trian"], "error: rlcli has no command trian. Nearest: train."),
        (["train", "--lrr", "1"], "error: rlcli train has no option --lrr. Nearest: --lr"),
        (["train", "--modle", "x"], "Nearest: --model. See rlcli train --help."),
        (["train", "--batch-sise", "1"], "Nearest: --batch_size"),
        (["train", "--train.lr=3"], "Settings are written without dashes: train.lr=VALUE."),
        (["train", "--lr", "abc"], "'--lr'"),
        (["train", "--lr"], "--lr"),
        (["train", "-algo", "grpo"], "has no option -algo. Nearest: --algo"),
        (["train", "--use_api_reward", "true"], "Write --use_api_reward, or --no_use_api_reward"),
        (["train", "hello"], "expected key=value, found 'hello'"),
        (["presets", "show"], "error: rlcli presets show: "),
        (["train", "--from_script"], "--from-script wants the name"),
    ],
)
def test_a_wrong_command_line_is_explained(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert out == ""
    assert says in err
    assert err.startswith("error: ")
    assert len(err.splitlines()) <= 3


def test_the_table_of_options_is_that_of_the_settings() -> None:
    assert {option.name for option in OPTIONS} - OWN == set(FLAG_KEYS)


@pytest.mark.parametrize("spelling", ["--rm_api_type", "--rm-api-type", "--rm_api-type"])
def test_an_option_has_dashes_or_underscores(
    spelling: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["config", "show", "--changed", "--use_api_reward", spelling, "openai"])
    assert ended.value.code == 0
    assert 'reward.judge.provider: "openai"' in capsys.readouterr().out


def test_nothing_at_all_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert "Usage: rlcli" in out + err


def test_the_shell_completes_presets_and_settings(tmp_path: Path) -> None:
    def offered(words: str, number: int) -> list[str]:
        env = {**os.environ, "_RLCLI_COMPLETE": "complete_bash"}
        env |= {"COMP_WORDS": words, "COMP_CWORD": str(number), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "rlcli.cli.main"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path)
        assert "Traceback" not in done.stderr
        return done.stdout.split()

    assert offered("rlcli train --algo gr", 3) == ["grpo", "grpo_passk"]
    assert offered("rlcli train train.lr_s", 2) == ["train.lr_schedule="]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(("output", "code"), [(">/dev/full", 1), (">&-", 0)])
def test_an_output_that_cannot_be_written_is_no_traceback(output: str, code: int) -> None:
    command = f"{sys.executable} -m rlcli.cli.main presets list {output}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_a_wrong_setting_is_refused_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from rlcli.cli.main import main\n"
        "try:\n"
        "    main(['train', '--preset', 'quickstart', *sys.argv[1:]])\n"
        "except SystemExit as ended:\n"
        "    assert ended.code == 2\n"
        "assert 'torch' not in sys.modules\n"
    )
    compiled = ["--engine", "deepspeed", "model.compile=true"]
    for words in (["rollout.n=1"], ["data.max_response_tokens=4000"], compiled):
        command = [sys.executable, "-c", code, *words]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
        assert done.returncode == 0, done.stderr
