"""Runs scored by a judge, with the real client libraries against a server on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from judge_server import Act, Call, JudgeServer
from small_runs import judged, metrics

pytest.importorskip("openai", reason="install the judge extra: pip install -e '.[judge]'")
pytest.importorskip("anthropic", reason="install the judge extra: pip install -e '.[judge]'")
pytest.importorskip("google.genai", reason="install the judge extra: pip install -e '.[judge]'")

KEYS = {
    "dashscope": "DASHSCOPE_API_KEY",
    "openai": "OPENAI_API_KEY",
    "gemini": "GOOGLE_API_KEY",
    "claude": "CLAUDE_API_KEY",
}
MODELS = {"openai": "gpt-4o-mini", "gemini": "gemini-1.5-flash", "claude": "claude-3-haiku"}
CANARY = "sk-canary-4711"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in (*KEYS.values(), "GEMINI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def judge() -> Iterator[JudgeServer]:
    server = JudgeServer(lambda call: Act())
    yield server
    server.close()


@pytest.mark.parametrize("provider", KEYS)
def test_every_provider_of_the_guide_trains(
    provider: str, folder: Path, judge: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEYS[provider], CANARY)
    named = ["--rm_model", MODELS[provider]] if provider in MODELS else []
    words = ["--rm_api_type", provider, *named, "--rm_prompt_preset", "math", "--max_steps", "2"]
    assert judged(judge.url, *words) == 0
    # 8 of 10 on a scale from 1: (8 - 1) / 9
    assert [step["reward_mean"] for step in metrics()] == pytest.approx([7 / 9, 7 / 9])
    assert len(judge.calls) > 2
    taken = {
        name: sum(step[f"judge/{name}"] for step in metrics())
        for name in ("calls", "input_tokens", "output_tokens")
    }
    calls = len(judge.calls) - 1  # the probe
    assert taken == {"calls": calls, "input_tokens": 100 * calls, "output_tokens": 20 * calls}
    assert all(step["judge/cost_usd"] > 0 for step in metrics())
    for file in (path for path in folder.rglob("*") if path.is_file()):
        assert CANARY.encode() not in file.read_bytes(), file


def test_a_key_that_is_refused_during_the_run_pauses_it_and_it_goes_on(
    folder: Path, judge: JudgeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("DASHSCOPE_API_KEY", CANARY)
    judge.behave = lambda call: Act() if len(judge.calls) < 14 else Act(status=401)
    assert judged(judge.url, "--max_steps", "4") == 75
    assert CANARY not in capsys.readouterr().err
    status = json.loads((folder / "run/status.json").read_text())
    assert status["state"] == "paused"
    assert status["resumable"] is True
    judge.behave = lambda call: Act()
    assert judged(judge.url, "--max_steps", "4", "--resume", "auto") == 0
    assert [step["step"] for step in metrics()] == [1, 2, 3, 4]


def test_a_missing_key_is_an_error_to_a_run_and_a_warning_to_a_dry_run(
    folder: Path, judge: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert judged(judge.url) == 2
    assert "DASHSCOPE_API_KEY" in capsys.readouterr().err
    assert not (folder / "run").exists()
    assert judged(judge.url, "--dry_run") == 0
    assert "not here: " in capsys.readouterr().out
    assert judge.calls == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--rm_prompt_preset", "mth"], "mth"),
        (["--rm_scoring_prompt", "{prompt} {respons}"], "respons"),
        (["--rm_api_type", "openai"], "--rm_model"),
    ],
)
def test_a_dry_run_without_a_key_checks_everything_else_of_the_judge(
    words: list[str],
    says: str,
    folder: Path,
    judge: JudgeServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert judged(judge.url, "--dry_run", *words) == 2
    assert says in capsys.readouterr().err


def test_a_wrong_key_is_found_before_a_model_loads(
    folder: Path, judge: JudgeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("DASHSCOPE_API_KEY", CANARY)
    judge.behave = lambda call: Act(status=401)
    assert judged(judge.url) == 2
    err = capsys.readouterr().err
    assert CANARY not in err
    assert len(err.strip().splitlines()) <= 3
    assert len(judge.calls) == 1


def test_unscored_rollouts_are_counted_not_zero(
    folder: Path, judge: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASHSCOPE_API_KEY", CANARY)
    blocked: set[str] = set()

    def behave(call: Call) -> Act:
        if len(judge.calls) > 1 and not blocked:
            blocked.add(call.response)
        return Act(finish="blocked", text="") if call.response in blocked else Act()

    judge.behave = behave
    words = ["--max_steps", "1", "--batch_size", "8", "reward.judge.canary_every=0"]
    assert judged(judge.url, *words) == 0
    (step,) = metrics()
    assert step["unscored"] >= 1
    assert step["reward_mean"] == pytest.approx(7 / 9)


def test_an_evaluation_counts_what_its_judge_took(
    folder: Path, judge: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASHSCOPE_API_KEY", CANARY)
    rows = [{"prompt": f"{i} + 1 =", "ground_truth": str(i + 1)} for i in range(4)]
    (folder / "val.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = ["--val_data", "val.jsonl", "rollout.val_n=1", "--max_steps", "1"]
    assert judged(judge.url, *arguments) == 0
    first, step, last = metrics()
    assert first["eval/judge/calls"] + step["judge/calls"] + last["eval/judge/calls"] == (
        len(judge.calls) - 1
    )
    assert "judge/calls" not in first


def test_a_budget_holds_over_resumes(
    folder: Path, judge: JudgeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    words = ["--rm_api_type", "openai", "--rm_model", "gpt-4o-mini", "--max_steps", "50"]
    budget = ["--max_judge_cost", "0.003"]
    assert judged(judge.url, *words, *budget) == 75
    assert "That stays spent" in capsys.readouterr().err
    before = len(judge.calls)
    assert before > 10
    assert judged(judge.url, *words, *budget, "--resume", "auto") == 75
    # the probe, and what the last call left of the budget
    assert len(judge.calls) <= before + 3


def test_a_judge_that_is_away_when_a_run_is_resumed_pauses_it(
    folder: Path, judge: JudgeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("DASHSCOPE_API_KEY", CANARY)
    assert judged(judge.url, "--max_steps", "1") == 0
    judge.behave = lambda call: Act(status=401)
    assert judged(judge.url, "--max_steps", "2", "--resume", "auto") == 75
    assert len(capsys.readouterr().err.strip().splitlines()) <= 3
    status = json.loads((folder / "run/status.json").read_text())
    assert (status["state"], status["resumable"], status["step"]) == ("paused", True, 1)
    judge.behave = lambda call: Act(status=404)
    assert judged(judge.url, "--max_steps", "2", "--resume", "auto") == 2
    judge.behave = lambda call: Act()
    assert judged(judge.url, "--max_steps", "2", "--resume", "auto") == 0
    assert [step["step"] for step in metrics()] == [1, 2]
