"""`rlcli algo`: real runs side by side, and words that are understood or refused."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer

from rlcli.cli.algo import algo_app
from rlcli.cli.compare import exit_code, make_runs, request_words, sort_words
from rlcli.cli.main import main
from rlcli.cli.options import RunRequest, takes_run_options
from rlcli.config.resolved import with_values
from rlcli.config.schema import Config
from rlcli.errors import ConfigError, RlcliError
from rlcli.tools.compare import Failure, Job, Stop

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def algo(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr or the user's error)."""
    code, error = 0, ""
    try:
        algo_app([_dashed(word) for word in words], standalone_mode=False)
    except SystemExit as ended:
        code = int(ended.code or 0)
    except RlcliError as problem:
        code, error = problem.exit_code, str(problem)
    out, err = capsys.readouterr()
    return code, out, err + error


def _dashed(word: str) -> str:
    """An option as `rlcli` itself normalises it."""
    name, equals, value = word.partition("=")
    return (name.replace("_", "-") if name.startswith("--") else name) + equals + value


TINY = (
    "--preset=quickstart", "--max_steps=2", "--batch_size=8", "train.mini_batch_prompts=8",
    "rollout.val_n=1", "--seeds=1", "--out=runs",
)  # fmt: skip


def test_algorithms_are_trained_compared_and_not_trained_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, err = algo(capsys, "compare", "grpo", "rloo", "rloo", *TINY)
    assert code == 0, out + err
    assert out.startswith("2 runs in runs\ngrpo seed 0: ")
    assert max(map(len, out.splitlines())) <= 80
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.jsonl")}
    assert len(stamps) == 2

    code, out, err = algo(capsys, "compare", "grpo", "rloo", *TINY, "--json")
    assert code == 0
    assert err.count("finished before") == 2
    said = json.loads(out)
    assert [row["name"] for row in said["rows"]] == ["grpo", "rloo"]
    assert said["failed"] == []
    for row in said["rows"]:
        assert row["cpu_s"] > 0
        assert row["peak_mib"] > 200
        assert row["is_whole"]
        assert 0.0 <= row["before"] <= row["best"] <= 1.0
        assert row["reward_variance"] is not None
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}

    code, table, _ = algo(capsys, "compare", "runs/rloo-seed0", "runs/grpo-seed0")
    assert code == 0
    assert [line.split()[0] for line in table.splitlines()[2:4]] == ["rloo", "grpo"]
    code, _, err = algo(capsys, "compare", "grpo", *TINY, "--lr=1e-5")
    assert code == 2
    assert "was run with train.lr=0.0003" in err


def test_a_refused_run_is_reported_once_and_the_others_go_on(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    missing = ("--data=nothing.jsonl", "--seeds=2", "--out=runs")
    code, out, _ = algo(capsys, "compare", "grpo", "--preset=quickstart", *missing)
    assert code == 2
    assert "grpo seed 0: failed with exit code 2 (1 of 2)" in out
    assert "nothing.jsonl" in out
    assert "grpo seed 1: left out" in out
    assert (tmp_path / "runs" / "grpo-seed0.log").is_file()


class Pausing(Job):
    """A job whose child waits for a judge."""

    def command(self) -> list[str]:
        return [sys.executable, "-c", "print('error: the judge is down'); exit(75)"]


def jobs(folder: Path, **values: Any) -> list[Job]:
    wanted = with_values(Config(), {f"run.{key}": value for key, value in values.items()})
    return [
        Pausing(algorithm=name, seed=0, folder=folder / f"{name}-seed0", words=(), wanted=wanted)
        for name in ("grpo", "rloo")
    ]


def test_a_run_that_pauses_stops_the_comparison(tmp_path: Path) -> None:
    told: list[str] = []
    made = jobs(tmp_path / "runs")
    results, failures = make_runs(made, Stop(), told.append)
    assert results == []
    (failure,) = failures
    assert (failure.exit_code, failure.reason) == (75, "the judge is down")
    assert told[1] == "grpo seed 0: paused (1 of 2)"
    assert told[-1] == f"stopped. Go on with the same line and --out {tmp_path / 'runs'}"
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["grpo-seed0.log"]
    assert exit_code(made, Stop(), failures, results) == 75


def test_a_comparison_that_is_stopped_ends_as_a_run_does(tmp_path: Path) -> None:
    failures = [Failure(run="r", exit_code=1, reason="")]
    for number, codes in ((signal.SIGTERM, (0, 85)), (signal.SIGINT, (130, 130))):
        ended = [
            exit_code(jobs(tmp_path, **values), Stop(signal=number), failures, [])
            for values in ({}, {"preempt_exit_code": 85})
        ]
        assert ended == [*codes]
    assert exit_code(jobs(tmp_path), Stop(), failures, []) == 1
    assert exit_code(jobs(tmp_path), Stop(), [], []) == 0


def test_words_are_algorithms_runs_and_settings(tmp_path: Path) -> None:
    run = tmp_path / "some=run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    words = ["DrGRPO", "some=run", "gae", "rollout.n=4", "dr_grpo"]
    assert sort_words(words, tmp_path) == (
        ["dr_grpo", "ppo"],
        [Path("some=run")],
        ["rollout.n=4"],
    )


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("grpoo", "Nearest: grpo"),
        ("quickstart", "--preset quickstart"),
        ("gdpo", "algorithm.adv_estimator=gdpo"),
        ("empty", "no run was started in it"),
        ("outputs/firts", "Nearest: outputs/first"),
        ("first", "Nearest: outputs/first"),
    ],
)
def test_any_other_word_is_refused_with_the_nearest(word: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    first = tmp_path / "outputs" / "first"
    first.mkdir(parents=True)
    for name in ("config.json", "sources.json"):
        (first / name).write_text("{}")
    with pytest.raises(ConfigError, match=said):
        sort_words([word], tmp_path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "nothing to compare"),
        (("grpo", "--algo=rloo"), "without it"),
        (("grpo", "--output_dir=x"), "Use --out DIR"),
        (("grpo", "rollout.n=1"), "grpo needs rollout.n >= 2"),
        (("grpo", "rollout.m=1"), "unknown setting rollout.m=1"),
    ],
)
def test_what_a_comparison_cannot_use_is_refused_before_a_run(
    words: Sequence[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, _, err = algo(capsys, "compare", *words)
    assert code == 2
    assert said in err
    assert not any(tmp_path.iterdir())


def test_a_run_gets_the_options_of_the_comparison(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "my.yaml").write_text("train: {grad_clip: 0.5}\n")
    (tmp_path / "-odd.jsonl").write_text("")
    given = [
        "--preset", "quickstart", "--config", "my.yaml", "--lr", "1e-5", "--data", "a.jsonl",
        "--data", "-odd.jsonl", "--use-api-reward",
        "--rm-system-prompt", "a 'b'\n--c", "lora.rank=4", "--seed", "7", "--trust-remote-code",
    ]  # fmt: skip
    seen: list[RunRequest] = []

    def keep(request: RunRequest) -> None:
        seen.append(request)

    app = typer.Typer()
    app.command()(takes_run_options(keep))
    app(given, standalone_mode=False)
    words = request_words(seen[0], seen[0].overrides)
    assert shown(capsys, *words, "--seed=7") == shown(capsys, *given)


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    with pytest.raises(SystemExit) as ended:
        main(["config", "show", "--json", *words])
    assert not ended.value.code
    settings: dict[str, Any] = json.loads(capsys.readouterr().out)["config"]
    return settings


def test_recommend_prints_a_command_and_its_reasons_in_80_columns(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("recommend", "--task=dialogue", "--gpus=8", "--memory-gib=80",
             "--model=Qwen/Qwen2.5-0.5B-Instruct")  # fmt: skip
    code, out, _ = algo(capsys, *words)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    for part in ("Use ppo, 1 answer", "looked at: --task dialogue", "rlcli train --algo ppo",
                 "Watch", "value_loss", "Second choice: grpo, 8 answers"):  # fmt: skip
        assert part in out
    code, out, _ = algo(capsys, *words, "--json")
    said = json.loads(out)
    assert (said["algorithm"], said["n"], said["second"]["algorithm"]) == ("ppo", 1, "grpo")
    assert said["words"][:4] == ["rlcli", "train", "--algo", "ppo"]
    assert said["situation"]["gpus"] == 8


def test_recommend_looks_at_this_machine_where_nothing_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, _ = algo(capsys, "recommend", "--model-size=0.5")
    assert code == 0
    assert "counted by nvidia-smi" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [(("--task=maths",), "Nearest: math"), (("--model=./nowhere",), "--model_size")],
)
def test_recommend_refuses_what_it_does_not_know(
    words: Sequence[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = algo(capsys, "recommend", *words)
    assert code == 2
    assert said in err
