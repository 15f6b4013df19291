"""`rlcli rollouts view`: what the policy wrote, safe to print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlcli.cli.rollouts import rollouts_app
from rlcli.errors import RlcliError, RunDirError, UsageError
from rlcli.run_dir.rollout_files import printable


def row(response: str, reward: float | None, **more: Any) -> dict[str, Any]:
    return {
        "id": "d.jsonl:1",
        "prompt": "1+1=",
        "response": response,
        "ground_truth": "2",
        "reward": reward,
        "parts": {},
        "error": None if reward is not None else "judge: timed out",
        "finish_reason": "stop",
        "length": len(response),
        **more,
    }


ROWS = [
    row("fine", 1 / 3, parts={"format": 1.0, "accuracy": 0.0}),
    row("zero", 0.0),
    row("best", 1.0, reason="every step is valid"),
    row("unscored", None),
    row("cut", -1.0, finish_reason="length"),
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with rollouts of steps 1 and 12."""
    run = tmp_path / "outputs" / "one"
    (run / "rollouts").mkdir(parents=True)
    (run / "status.json").write_text("{}")
    for step, rows in ((1, ROWS[:1]), (12, ROWS)):
        lines = [json.dumps(entry, ensure_ascii=False) for entry in rows]
        path = run / "rollouts" / f"step_{step:06d}.jsonl"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return run


def view(*arguments: str) -> None:
    rollouts_app(["view", "one", *arguments], standalone_mode=False)


@pytest.mark.parametrize(
    ("arguments", "responses"),
    [
        ([], ["fine", "zero", "best", "unscored", "cut"]),
        (["-n", "2"], ["fine", "zero"]),
        (["--worst"], ["cut", "zero", "fine", "best"]),
        (["--best", "-n", "1"], ["best"]),
        (["--zero"], ["zero"]),
        (["--truncated"], ["cut"]),
        (["--step", "1"], ["fine"]),
    ],
)
def test_rollouts_are_picked_and_ordered(
    arguments: list[str], responses: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    view(*arguments, "--json")
    said = json.loads(capsys.readouterr().out)
    assert [entry["response"] for entry in said["rollouts"]] == responses
    assert said["step"] == (1 if "--step" in arguments else 12)


def test_a_rollout_is_shown_with_all_that_is_known_of_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    view()
    out = capsys.readouterr().out
    for words in (
        "step 12: 5 rollouts",
        "#1 d.jsonl:1  reward 0.333333  (format 1, accuracy 0)  4 tokens, ended",
        "error:\n  judge: timed out",
        "reward none",
        "cut by the length limit",
        "ground truth:\n  2",
        "reason:\n  every step is valid",
    ):
        assert words in out


def test_what_the_model_wrote_cannot_steer_the_terminal(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nasty = (
        "\x1b[2J\x1b]0;title\x07 \x9b31m \r over \u202e gnp \x7f \u4e2d\u6587\u200d " + "w" * 200
    )
    line = json.dumps(row(nasty, 1.0, error="\x1b[31m"), ensure_ascii=False)
    (folder / "rollouts" / "step_000013.jsonl").write_text(line + "\n", encoding="utf-8")
    view()
    out = capsys.readouterr().out
    assert not set(out) & set("\x1b\x07\x9b\r\u202e\x7f")
    assert "\\x1b[2J" in out
    assert "\u4e2d\u6587" in out
    assert max(map(len, out.splitlines())) <= 80
    view("--json")
    plain = capsys.readouterr().out
    assert plain.isascii()
    assert json.loads(plain)["rollouts"][0]["response"] == nasty


def test_joiners_and_line_breaks_stay() -> None:
    assert printable("a\n\tb\u200d\u00a0c") == "a\n\tb\u200d\u00a0c"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--step", "7"], "holds no step 7; it has steps 1 to 12"),
        (["--worst", "--best"], "--worst and --best cannot be shown together"),
    ],
)
def test_what_cannot_be_shown_is_said(arguments: list[str], words: str) -> None:
    with pytest.raises((RunDirError, UsageError), match=words):
        view(*arguments)


def test_a_run_without_rollouts_says_so(folder: Path) -> None:
    for file in (folder / "rollouts").iterdir():
        file.unlink()
    with pytest.raises(RlcliError, match="no rollouts yet"):
        view()
