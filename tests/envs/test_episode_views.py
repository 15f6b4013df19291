"""Episodes in the plan, the dry run, the report and the views of rollouts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from env_runs import COUNTING, LOOKUP, command, rollouts, train, write_count

from rlcli.cli import rollouts as views


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_count()


def test_a_run_shows_its_episodes_as_dialogues(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(*LOOKUP, "train.max_steps=1", "run.eval_every=-1", "data.val_limit=1") == 0
    assert any(row["turns"] == 2 for row in rollouts())
    capsys.readouterr()
    monkeypatch.setattr(views, "_has_styles", lambda: True)
    assert command("rollouts", "view", "run", "-n", "24") == 0
    lines = capsys.readouterr().out.splitlines()
    dim = [line for line in lines if line.startswith("\x1b[2m") and line.endswith("\x1b[0m")]
    assert any("tool" in line for line in dim)
    assert not any("assistant:" in line or "prompt:" in line for line in dim)
    assert command("report", "run") == 0
    page = Path("run/report.html").read_text()
    assert '<pre dir="auto" class="env">' in page
    assert "tools builtin:lookup" in page


def test_the_plan_knows_turns_and_waiting(capsys: pytest.CaptureFixture[str]) -> None:
    """6 prompts x 4 rollouts, 8 in the environment at once, 5 turns: 3 rounds a turn."""
    words = [*COUNTING, "env.max_turns=5", "env.concurrency=8"]
    assert command("plan", *words, "--json") == 0
    found = json.loads(capsys.readouterr().out)["episodes"]
    assert found["episodes"] == 24
    assert found["rounds"] == 15
    assert command("plan", *words) == 0
    said = capsys.readouterr().out
    assert "at most 5 turns" in said
    assert "12 prompts" in said


def test_a_dry_run_says_what_episodes_add(capsys: pytest.CaptureFixture[str]) -> None:
    assert train(*COUNTING, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "episodes: at most 8 turns" in said
    assert train(*COUNTING, "--model", "./absent", "--dry-run") == 0
    assert "12 prompts" in capsys.readouterr().out


def test_a_plan_without_an_environment_has_no_episodes(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("plan", "--preset", "quickstart", "--json") == 0
    assert json.loads(capsys.readouterr().out)["episodes"] is None


def test_settings_of_evaluation_are_used_where_the_environment_makes_the_tasks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train(*COUNTING, "run.eval_every=3", "--dry-run") == 0
    assert "not used: run.eval_every" not in capsys.readouterr().out
    assert train(*COUNTING, "env.val_tasks=0", "run.eval_every=3", "--dry-run") == 0
    assert "not used: run.eval_every" in capsys.readouterr().out
