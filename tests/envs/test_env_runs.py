"""Runs with tools and environments through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_runs import metrics

from rlcli.cli.main import main

GUESS = '''\
import random

class Guess:
    """Guess a digit. Another digit is an answer, too."""

    def __init__(self, digits=10):
        self.digits = digits

    def reset(self, task, seed):
        self.goal = random.Random(seed).randrange(self.digits)
        return f"{self.goal}+0="

    def step(self, reply):
        good = reply.text.strip() == str(self.goal)
        return {"messages": "3+4=", "reward": float(good), "done": good}
'''
OWN = (
    GUESS
    + """\

    def __len__(self):
        return 30

    def task(self, index, seed):
        return {"index": index}
"""
)
TRL = '''\
class Table:
    """TRL's form: reset, tools, get_reward."""

    def reset(self, **row):
        self.num_calls = 0
        return "k5="

    def look(self, k: int) -> str:
        """Look up.

        Args:
            k: The key.
        """
        self.num_calls += 1
        return "7"

    def get_reward(self) -> float:
        return float(self.num_calls)
'''


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(["train", *words])
    return left.value.code  # type: ignore[return-value]


SMALL = (
    "--preset", "quickstart-tools", "train.prompts_per_step=6", "train.mini_batch_prompts=3",
    "rollout.n=4", "train.max_steps=2", "data.val_limit=4",
)  # fmt: skip


def small(*words: str, out: str = "run") -> int:
    return run(*SMALL, "--output_dir", out, *words)


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (("guess", GUESS), ("own", OWN), ("table", TRL)):
        Path(f"{name}.py").write_text(text)


def weights(out: str) -> dict[str, torch.Tensor]:
    return load_file(Path(out) / "checkpoints" / "final" / "model.safetensors")


def rollouts(out: str = "run", step: int = 1) -> list[dict[str, Any]]:
    file = Path(out) / "rollouts" / f"step_{step:06d}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_model_learns_to_use_a_tool() -> None:
    """The preset as it is; a held-out key is only known to the tool."""
    assert run("--preset", "quickstart-tools", "--output_dir", "run") == 0
    scores = [row["eval/pass@1"] for row in metrics() if "eval/pass@1" in row]
    assert scores[0] < 0.25
    assert scores[-1] >= 0.6
    last = [row for row in metrics() if "env/tool_calls" in row][-1]
    assert last["env/tool_calls"] > 0.8
    assert last["episode/turns_mean"] > 1.9


def test_rollouts_are_kept_as_dialogues(capsys: pytest.CaptureFixture[str]) -> None:
    assert small() == 0
    called = [row for row in rollouts() if row["turns"] == 2]
    assert called
    for row in called:
        roles = [message["role"] for message in row["dialogue"]]
        assert roles == ["assistant", "tool", "assistant"]
        assert row["response"] == row["dialogue"][-1]["content"]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["rollouts", "view", "run", "-n", "24", "--step", "1"])
    assert "tool look:" in capsys.readouterr().out


def test_a_run_that_is_resumed_ends_with_the_same_bits() -> None:
    assert small("train.max_steps=3", "run.save_every=1", out="whole") == 0
    assert small("train.max_steps=1", "run.save_every=1", out="parts") == 0
    assert small("train.max_steps=3", "run.save_every=1", "--resume", "auto", out="parts") == 0
    first, second = weights("whole"), weights("parts")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_environment_makes_its_tasks_and_gives_the_reward() -> None:
    words = ("--preset", "quickstart", "--env", "guess.py:Guess", "env.args.digits=5")
    more = ("env.tasks=12", "env.val_tasks=4", "data.max_response_tokens=20")
    assert run(*words, *SMALL[2:], *more, "--output_dir", "run") == 0
    rows = rollouts()
    assert {row["prompt"] for row in rows} <= {f"{digit}+0=" for digit in range(5)}
    assert {row["reward"] for row in rows} <= {0.0, 1.0}
    assert any(row["turns"] > 1 for row in rows)


def test_tasks_of_its_own_are_shared_out_to_training_and_evaluation() -> None:
    words = ("--preset", "quickstart", "--env", "own.py:Guess", *SMALL[2:])
    assert run(*words, "--output_dir", "run") == 0
    rows = [row for row in metrics() if "eval/rows" in row]
    assert rows[0]["eval/rows"] == 4  # data.val_limit of 30 // 5


def test_trls_form_needs_no_change() -> None:
    words = ("--env", "table.py:Table", "env.tool_format=pythonic", "--model", "builtin:lookup")
    assert run("--preset", "quickstart", *words, *SMALL[2:], "--output_dir", "run") == 0
    for row in rollouts():
        calls = sum(message["role"] == "tool" for message in row["dialogue"])
        assert row["reward"] <= calls


def test_the_final_model_is_evaluated_on_episodes(capsys: pytest.CaptureFixture[str]) -> None:
    assert small() == 0
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main(["eval", "run", "--k", "2", "--json"])
    assert left.value.code == 0
    report = json.loads(capsys.readouterr().out)
    assert report["pass@2"] is not None
    assert report["unscored"] == 0


def test_dynamic_sampling_draws_more_episodes() -> None:
    assert small("algorithm.dynamic_sampling=true", "algorithm.max_resample_rounds=2") == 0
    rows = [row for row in metrics() if "dynamic_sampling/rounds" in row]
    assert rows
    assert all("episode/turns_mean" in row for row in rows)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--env", "guess.py:Guess"), "both given"),
        (("--tools", "nothing.py"), "no file"),
        (("--tools", "untyped.py"), "untyped.py:1"),
        (("--model", "builtin:quickstart", "env.tool_format=json"), "tool_format"),
    ],
)
def test_what_does_not_work_is_refused(
    words: tuple[str, ...], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("untyped.py").write_text("def f(x):\n    return x\n")
    assert small(*words) == 2
    assert why in capsys.readouterr().err
    assert not Path("run/checkpoints").exists()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--env", "own.py:Guess", "--data", "builtin:sums"), "tasks of its own"),
        (("--env", "guess.py:Guess", "--reward", "exact"), "both give the reward"),
        (("--env", "guess.py:Guess", "--val_data", "builtin:sums_val"), "makes the tasks"),
        (("--env", "guess.py:Guess", "env.args.size=3"), "unexpected keyword"),
    ],
)
def test_an_environment_that_contradicts_the_run_is_refused(
    words: tuple[str, ...], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--preset", "quickstart", "--output_dir", "run", *words) == 2
    assert why in capsys.readouterr().err


def test_settings_of_environments_without_one_are_listed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("--preset", "quickstart", "env.max_turns=3", "--dry-run") == 0
    assert "not used: env.max_turns" in capsys.readouterr().out


def test_env_check_plays_an_environment_and_finds_one_that_ignores_its_seed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["env", "check", "guess.py:Guess", "digits=3"])
    assert left.value.code == 0
    assert "reward" in capsys.readouterr().out
    Path("bad.py").write_text(GUESS.replace("random.Random(seed)", "random.SystemRandom()"))
    with pytest.raises(SystemExit) as left:
        main(["env", "check", "bad.py:Guess"])
    assert left.value.code == 1
    with pytest.raises(SystemExit):
        main(["env", "show", "guess.py:Guess", "-n", "3"])
    assert capsys.readouterr().out.count("+0=") == 3


def env(*words: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(["env", *words])
    return int(left.value.code or 0)


def test_env_check_calls_the_tools_of_trls_form(capsys: pytest.CaptureFixture[str]) -> None:
    assert env("check", "table.py:Table") == 0
    assert "reward 1" in capsys.readouterr().out
    Path("broken.py").write_text(TRL.replace('return "7"', "raise OSError('no table')"))
    assert env("check", "broken.py:Table") == 0
    assert "no table" in capsys.readouterr().out


def test_env_check_takes_rows_of_data_for_an_environment_that_needs_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("needs.py").write_text(GUESS.replace("random.Random(seed)", "random.Random(task['k'])"))
    Path("rows.jsonl").write_text('{"prompt": "Go. ", "k": 3}\n{"prompt": "Go. ", "k": 4}\n')
    assert env("check", "needs.py:Guess") == 2
    assert "--data FILE" in capsys.readouterr().err
    assert env("check", "needs.py:Guess", "--data", "rows.jsonl") == 0
    assert capsys.readouterr().out.count("3 turns") == 2


def test_env_list_shows_what_is_installed_and_how_to_install_the_rest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert env("list", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert "builtin:lookup" in found["builtin"]
    for facts in found["libraries"].values():
        assert facts["is_installed"] or "pip install" in facts["install"]
    assert env("list", "openeny") == 2
    assert "openenv" in capsys.readouterr().err


def test_a_person_plays_an_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = iter(["no", "0", "look(k=5)", "done"])
    monkeypatch.setattr("builtins.input", lambda prompt="": next(lines))
    assert env("play", "guess.py:Guess", "digits=1") == 0
    said = capsys.readouterr().out
    assert "3+4=" in said
    assert "reward: 1" in said
    assert env("play", "table.py:Table") == 0
    said = capsys.readouterr().out
    assert "tool: 7" in said
    assert "reward: 1" in said


def test_a_model_plays_an_environment(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("guess.py:Guess", "--model", "builtin:quickstart", "-n", "2", "--max_turns", "2")
    assert env("play", *words) == 0
    assert capsys.readouterr().out.count("reward") == 2


def test_eval_begins_no_more_rows_than_it_evaluates(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--preset", "quickstart", "--env", "guess.py:Guess", *SMALL[2:-1], "train.max_steps=1")
    more = ("env.tasks=12", "env.val_tasks=4", "--output_dir", "run")
    assert run(*words, *more) == 0
    capsys.readouterr()
    Path("guess.py").write_text(
        GUESS.replace("self.goal = ", "open('begun', 'a').write('x'); self.goal = ")
    )
    with pytest.raises(SystemExit) as left:
        main(["eval", "run", "--limit", "2", "--json"])
    assert left.value.code == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 2
    begun = len(Path("begun").read_text())
    assert begun == 2 + 2  # once to be described as rows, once each as an episode


def test_a_run_keeps_the_whole_path_of_its_environment() -> None:
    words = ("--preset", "quickstart", "--env", "guess.py:Guess", *SMALL[2:-1], "env.tasks=12")
    more = ("env.val_tasks=0", "run.save_every=1", "--output_dir", "run")
    assert run(*words, *more, "train.max_steps=1") == 0
    config = json.loads(Path("run/config.json").read_text())
    assert Path(config["env"]["path"].rpartition(":")[0]).is_absolute()
