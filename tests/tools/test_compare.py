"""The table's numbers worked by hand, and which runs may be gone on with."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from rlcli.cli.comparison_text import table_lines
from rlcli.config.resolved import with_values
from rlcli.config.schema import Config
from rlcli.errors import ConfigError, RunDirError
from rlcli.monitor.trend import noise, variance_between_steps
from rlcli.tools.compare import Job, Stop, read_result, run_job, tabulate, unlike_settings
from rlcli.tools.compare.table import Row


def config(algorithm: str = "grpo", **values: Any) -> Config:
    dotted = {key.replace("__", "."): value for key, value in values.items()}
    return with_values(Config(), {"algorithm.name": algorithm, **dotted})


def write_run(
    run: Path,
    settings: Config,
    *,
    scores: list[float],
    rewards: list[float],
    usage: dict[str, Any] | None = None,
    state: str = "finished",
) -> Path:
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps(settings.model_dump()))
    (run / "status.json").write_text(json.dumps({"state": state, "step": len(rewards)}))
    rows: list[dict[str, Any]] = [{"step": 0, "eval/pass@1": scores[0], "time/eval_s": 0.5}]
    rows += [
        {
            "step": step,
            "epoch": 1,
            "reward_mean": reward,
            "time/step_s": 2.0,
            "memory/rss_gib": 0.25,
        }
        for step, reward in enumerate(rewards, 1)
    ]
    rows += [
        {"step": step, "eval/pass@1": score, "time/eval_s": 0.5}
        for step, score in enumerate(scores[1:], 9)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if usage is not None:
        (run / "usage.json").write_text(json.dumps(usage))
    return run


def test_a_row_is_the_mean_over_seeds(tmp_path: Path) -> None:
    for seed, (last, wall, peak) in enumerate([(0.5, 10.0, 300.0), (0.7, 20.0, 500.0)]):
        write_run(
            tmp_path / f"grpo-{seed}",
            config(run__seed=seed),
            scores=[0.25, 0.75, last],
            rewards=[0.0, 0.2, 0.4],
            usage={"wall_s": wall, "cpu_s": wall / 2, "peak_mib": peak},
        )
    (row,) = tabulate([read_result(run) for run in sorted(tmp_path.iterdir())])
    assert (row.name, row.seeds, row.before) == ("grpo", [0, 1], 0.25)
    assert row.after == pytest.approx(0.6)
    assert row.after_std == pytest.approx(0.02**0.5)  # unbiased: (0.1^2 + 0.1^2) / 1
    assert row.best == 0.75
    assert row.reward_variance == pytest.approx(0.02)  # steps of 0.2: 0.04 / 2
    assert (row.wall_s, row.cpu_s, row.peak_mib, row.is_whole) == (15.0, 7.5, 500.0, True)


def test_steady_learning_is_less_variance_than_noise() -> None:
    assert variance_between_steps([0.5]) is None
    assert variance_between_steps([0.3, 0.3, 0.3]) == 0.0
    rising = variance_between_steps([0.1 * step for step in range(10)])
    noisy = variance_between_steps([0.9 * (step % 2) for step in range(10)])
    assert rising == pytest.approx(0.005)
    assert noisy == pytest.approx(0.405)
    assert noise([0.9 * (step % 2) for step in range(10)]) == pytest.approx(0.405**0.5)
    assert noise([0.5]) == 0.0


def test_a_run_nobody_measured_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "mine", config(), scores=[0.1, 0.2], rewards=[0.1, 0.2])
    (row,) = tabulate([read_result(run)])
    assert (row.wall_s, row.cpu_s, row.peak_mib, row.is_whole) == (5.0, None, 256.0, False)
    assert table_lines([row])[1].split()[-3:] == ["~5", "-", "~256"]


def test_other_settings_make_another_row_and_are_named(tmp_path: Path) -> None:
    numbers: dict[str, Any] = {"scores": [0.1, 0.2], "rewards": [0.1]}
    write_run(tmp_path / "a", config(), **numbers)
    write_run(tmp_path / "b", config(train__lr=1e-5, run__seed=3), **numbers)
    write_run(tmp_path / "c", config("rloo", algorithm__advantage="rloo"), **numbers)
    results = [read_result(tmp_path / name) for name in "abc"]
    assert [row.name for row in tabulate(results)] == ["a", "b", "rloo"]
    assert unlike_settings(results) == {"train.lr": [1e-6, 1e-5]}


def test_a_run_without_evaluation_has_a_row_too(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", config(), scores=[0.1], rewards=[0.1])
    (run / "metrics.jsonl").write_text('{"step": 1, "epoch": 1, "reward_mean": null}\n{"step": ')
    (row,) = tabulate([read_result(run)])
    assert (row.before, row.after, row.best, row.reward_variance) == (None,) * 4
    assert table_lines([row])[1].split()[1:5] == ["-"] * 4


def test_the_table_is_at_most_80_columns_wide() -> None:
    row = Row(
        name="reinforce_plus_plus_baseline",
        algorithm="reinforce_plus_plus_baseline",
        seeds=[0],
        runs=["r"],
        before=1.0,
        after=1.0,
        after_std=0.123,
        best=1.0,
        reward_variance=1e-10,
        wall_s=99_999.0,
        cpu_s=999_999.0,
        peak_mib=99_999.0,
        is_whole=True,
    )
    lines = table_lines([row])
    assert max(map(len, lines)) <= 80
    assert lines[1] == row.name
    assert lines[2].split()[:3] == ["100.0%", "100.0%", "+-"]


def test_a_step_that_is_written_twice_counts_once(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", config(), scores=[0.1, 0.2], rewards=[0.1, 0.9])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "epoch": 1, "reward_mean": 0.3, "time/step_s": 4.0}\n')
        file.write('{"step": 9, "eval/pass@1": 0.4, "time/eval_s": 0.5}\n')
    result = read_result(run)
    assert (result.rewards, result.scores) == ([0.1, 0.3], [0.1, 0.4])
    assert result.usage.wall_s == 2.0 + 4.0 + 0.5 + 0.5


def job(folder: Path, wanted: Config) -> Job:
    return Job(algorithm="grpo", seed=0, folder=folder, words=(), wanted=wanted)


def test_a_finished_run_is_not_made_again_and_another_config_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "grpo-seed0"
    settings = config(train__max_steps=3)
    assert not job(run, settings).is_finished()
    write_run(run, settings, scores=[0.1, 0.2], rewards=[0.1])
    assert job(run, with_values(settings, {"run.output_dir": "elsewhere"})).is_finished()
    with pytest.raises(ConfigError, match=r"max_steps=3, and is now to have train\.max_steps=4"):
        job(run, with_values(settings, {"train.max_steps": 4})).is_finished()
    with pytest.raises(ConfigError, match="seed"):
        job(run, with_values(settings, {"run.seed": 4})).is_finished()


def test_what_the_data_made_smaller_is_no_other_setting(tmp_path: Path) -> None:
    run = tmp_path / "grpo-seed0"
    write_run(run, config(train__prompts_per_step=6), scores=[0.1], rewards=[0.1])
    wanted = job(run, config(train__prompts_per_step=256))
    with pytest.raises(ConfigError, match="prompts_per_step=6"):
        wanted.is_finished()
    (run / "sources.json").write_text('{"train.prompts_per_step": "shrunk to the data"}')
    assert wanted.is_finished()
    with pytest.raises(ConfigError, match="prompts_per_step=6"):
        job(run, config(train__prompts_per_step=4)).is_finished()


def test_what_had_to_fit_a_step_is_no_other_setting_either(tmp_path: Path) -> None:
    run = tmp_path / "grpo-seed0"
    write_run(run, config(train__mini_batch_prompts=6), scores=[0.1], rewards=[0.1])
    (run / "sources.json").write_text(
        '{"train.mini_batch_prompts": "shrunk to train.prompts_per_step"}'
    )
    assert job(run, config(train__mini_batch_prompts=8)).is_finished()


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match=r"no config\.json"):
        read_result(tmp_path)


class Script(Job):
    """A job whose child is a line of Python that knows its folder."""

    code = ""

    def command(self) -> list[str]:
        return [sys.executable, "-c", self.code, str(self.folder)]


def script(folder: Path, code: str) -> Script:
    made = type("Made", (Script,), {"code": code})
    return made(algorithm="grpo", seed=0, folder=folder, words=(), wanted=config())


FINISH = "import json,os,sys; os.makedirs(sys.argv[1], exist_ok=True); " + (
    "json.dump({'state': 'finished', 'step': 1}, open(sys.argv[1] + '/status.json', 'w'))"
)


def test_what_the_child_took_is_measured_and_added_up(tmp_path: Path) -> None:
    run = tmp_path / "r"
    burn = "import time; x = bytearray(64 << 20)\nwhile time.process_time() < 0.3: pass\n"
    assert run_job(script(run, burn + FINISH), Stop()) is None
    first = json.loads((run / "usage.json").read_text())
    assert 0.3 <= first["cpu_s"] <= first["wall_s"] + 0.2
    # up to its exec, Linux counts the memory of the process that starts it
    ours = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert 64 <= first["peak_mib"] < max(300, 1.1 * ours)
    assert first["is_whole"]
    assert run_job(script(run, burn + FINISH), Stop()) is None
    both = json.loads((run / "usage.json").read_text())
    assert both["cpu_s"] >= first["cpu_s"] + 0.3
    assert both["is_whole"]


def test_a_part_that_nobody_measured_is_remembered(tmp_path: Path) -> None:
    run = tmp_path / "r"
    run.mkdir()
    (run / "status.json").write_text('{"state": "preempted", "step": 1}')
    assert run_job(script(run, FINISH), Stop()) is None
    assert not json.loads((run / "usage.json").read_text())["is_whole"]


def test_a_failure_carries_the_last_error(tmp_path: Path) -> None:
    failure = run_job(script(tmp_path / "r", "print('error: no data\\nCure.'); exit(2)"), Stop())
    assert failure is not None
    assert (failure.exit_code, failure.reason) == (2, "no data Cure.")


def test_a_signal_reaches_the_child_and_ends_the_wait(tmp_path: Path) -> None:
    stop = Stop()
    seen = []

    def interrupt() -> None:
        if not seen and (tmp_path / "r.log").stat().st_size:
            seen.append(True)
            os.kill(os.getpid(), signal.SIGINT)

    code = "import time; print('up', flush=True)\ntry: time.sleep(600)\n"
    code += "except KeyboardInterrupt: exit(130)"
    before = signal.getsignal(signal.SIGINT)
    with stop.listening():
        failure = run_job(script(tmp_path / "r", code), stop, watch=interrupt)
    assert stop.signal == signal.SIGINT
    assert failure is not None
    assert failure.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_that_is_not_watched_any_more_is_ended(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, time\n"
        "def end(*_): print('saved', flush=True); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end); print(os.getpid(), flush=True); time.sleep(600)"
    )
    log = tmp_path / "r.log"

    def break_down() -> None:
        if log.read_text().strip():
            raise BrokenPipeError("nobody reads stderr")

    stop = Stop()
    with pytest.raises(BrokenPipeError):
        run_job(script(tmp_path / "r", code), stop, watch=break_down)
    pid, said = log.read_text().split()
    assert (said, stop.child) == ("saved", None)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def test_a_run_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlcli.tools.compare.jobs.END_S", 0.1)
    code = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); print(os.getpid(), flush=True)\n"
        "time.sleep(600)"
    )
    log = tmp_path / "r.log"

    def break_down() -> None:
        if log.read_text().strip():
            raise BrokenPipeError("nobody reads stderr")

    with pytest.raises(BrokenPipeError):
        run_job(script(tmp_path / "r", code), Stop(), watch=break_down)
    with pytest.raises(ProcessLookupError):
        os.kill(int(log.read_text()), 0)
