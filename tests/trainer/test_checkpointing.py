"""Checkpoints are written while training goes on, and nothing of that can be told from outside."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from checkpoint_parts import Counter, checkpoints, make_run

from rlcli.errors import TrainingError
from rlcli.run_dir.checkpoint import damage
from rlcli.run_dir.folder import RunDir
from rlcli.trainer.checkpointing import Checkpoints
from rlcli.trainer.loop import train

MAIN = threading.main_thread().name


def held(folder: Path, **changes: Any) -> tuple[Any, Counter, Checkpoints]:
    """A run whose first checkpoint is being written, until it may."""
    run, part = make_run()
    store = checkpoints(folder, **changes)
    part.may_write.clear()
    part.value, part.spent = 1.0, {"spent_usd": 0.25}
    store.save_if_due(1, run)
    return run, part, store


def test_what_is_saved_is_the_moment_it_was_due(tmp_path: Path) -> None:
    run, part, store = held(tmp_path)
    part.value, part.spent["spent_usd"] = 2.0, 0.5
    part.may_write.set()
    store.close(run)
    run, part = make_run()
    assert checkpoints(tmp_path).restore(run) == 1
    assert (part.value, part.spent) == (1.0, {"spent_usd": 0.25})


def test_one_that_is_being_written_is_no_checkpoint_yet(tmp_path: Path) -> None:
    run, part, store = held(tmp_path / "checkpoints")
    assert store.steps() == []
    assert not RunDir(tmp_path).has_checkpoint
    part.may_write.set()
    store.wait(run)
    assert store.steps() == [1]
    assert damage(tmp_path / "checkpoints" / "step_1") is None
    assert part.writers == ["checkpoint_0"]


def test_a_save_that_is_due_meanwhile_waits(tmp_path: Path) -> None:
    run, part, store = held(tmp_path)
    part.value = 2.0
    later = threading.Timer(0.1, part.may_write.set)
    later.start()
    store.save_if_due(2, run)
    assert damage(tmp_path / "step_1") is None
    store.close(run)
    assert store.steps() == [1, 2]
    assert checkpoints(tmp_path).restore(run) == 2
    assert part.value == 2.0


def test_training_touches_nothing_while_one_is_being_written(tmp_path: Path) -> None:
    (tmp_path / "rollouts").mkdir()
    rollouts = [tmp_path / "rollouts" / f"step_00000{step}.jsonl" for step in (1, 2, 3)]
    run, part, store = held(tmp_path / "checkpoints", save_every=2, disk_budget=1e-9)
    store.save_if_due(2, run)
    # the writer makes room before it writes, and may do so
    assert part.writing.wait(60)
    for path in rollouts:
        path.write_text("{}\n")
    store.save_if_due(3, run)
    assert all(path.exists() for path in rollouts)
    assert part.notes == []
    part.may_write.set()
    store.wait(run)
    assert not rollouts[0].exists()
    assert any("the oldest rollouts" in note for note in part.notes)


def test_the_best_is_that_of_the_moment_it_was_due(tmp_path: Path) -> None:
    run, part = make_run()
    store = checkpoints(tmp_path, keep=1)
    part.evaluations.append((1, 0.5))
    store.save(1, run)
    part.may_write.clear()
    store.save_if_due(2, run)
    part.evaluations.append((2, 0.9))
    part.may_write.set()
    store.wait(run)
    assert store.steps() == [1, 2]


def test_failures_are_told_by_the_thread_that_trains(tmp_path: Path) -> None:
    run, part, store = held(tmp_path)
    told: list[str] = []
    run.monitor.note = lambda text: told.append(f"{threading.current_thread().name}: {text}")
    part.fail_with = 28
    part.may_write.set()
    store.save_if_due(2, run)
    assert told == [f"{MAIN}: checkpoint of step 1 not written: the disk is full"]
    store.save_if_due(3, run)
    with pytest.raises(TrainingError, match=r"3 checkpoints in a row.*disk is full"):
        store.save_if_due(4, run)
    assert len(told) == 2
    assert not list(tmp_path.glob(".part*"))


def test_a_save_that_worked_ends_a_row_of_failures(tmp_path: Path) -> None:
    run, part = make_run()
    store = checkpoints(tmp_path)
    for step, error in enumerate([5, 5, None, 5, 5], start=1):
        store.wait(run)
        part.fail_with = error
        store.save_if_due(step, run)
    store.close(run)
    assert store.steps() == [3]
    assert len(part.notes) == 4


def test_the_third_failure_in_a_row_is_told_where_the_run_ends_of_something_else(
    tmp_path: Path,
) -> None:
    run, part, store = held(tmp_path)
    part.fail_with = 5
    part.may_write.set()
    store.save_if_due(2, run)
    store.save_if_due(3, run)
    store.close(run)
    assert "3 checkpoints in a row" in part.notes[-1]


def test_a_bug_in_the_writer_is_a_save_that_failed(tmp_path: Path) -> None:
    """What training did meanwhile is still to be saved; the third time in a row ends the run."""
    run, part = make_run()
    store = checkpoints(tmp_path)
    good, part.value = part.value, "no number"  # type: ignore[assignment]
    store.save_if_due(1, run)
    store.wait(run)
    assert any("step 1 not written: " in note and "Error" in note for note in part.notes)
    assert not list(tmp_path.rglob(".part-*"))
    part.value = good
    assert store.save(2, run)
    assert store.steps() == [2]


def test_a_step_that_is_saved_is_not_written_again(tmp_path: Path) -> None:
    run, _ = make_run()
    store = checkpoints(tmp_path)
    assert store.save(1, run)
    (tmp_path / "step_1" / "mark").touch()
    assert store.save(1, run)
    assert (tmp_path / "step_1" / "mark").exists()


def test_the_last_save_and_one_before_a_stop_are_there_at_once(tmp_path: Path) -> None:
    run, part = make_run()
    store = checkpoints(tmp_path)
    run.num_steps = 2
    store.save_if_due(2, run)
    assert store.steps() == [2]
    run.num_steps, part.stop_requested = 9, True
    store.save_if_due(3, run)
    assert store.steps() == [2, 3]
    assert part.writers == [MAIN, MAIN]


def test_the_end_waits_and_tries_once_more_what_was_not_written(tmp_path: Path) -> None:
    run, part, store = held(tmp_path)
    part.fail_with = 28
    part.may_write.set()
    store.wait(run)
    part.fail_with = None
    store.finish(run, 1)
    assert part.notes == ["checkpoint of step 1 not written: the disk is full"]
    assert store.steps() == [1]
    assert part.writers == ["checkpoint_0", MAIN]


def test_whatever_ends_training_what_is_being_written_is_finished(tmp_path: Path) -> None:
    run, part, store = held(tmp_path)
    run.checkpoints = store

    def fail(run: Any) -> int:
        threading.Timer(0.1, part.may_write.set).start()
        raise RuntimeError("out of memory")

    store.restore = fail
    with pytest.raises(RuntimeError, match="out of memory"):
        train(run)
    assert damage(tmp_path / "step_1") is None


def test_without_room_for_a_copy_training_waits_and_that_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of the number takes 4 bytes; half as much again must be free besides."""
    run, part = make_run()
    store = checkpoints(tmp_path)
    monkeypatch.setattr("rlcli.trainer.checkpointing.memory_swing", lambda: 10)
    monkeypatch.setattr("rlcli.trainer.checkpointing.free_ram", lambda: 15)
    store.save_if_due(1, run)
    store.save_if_due(2, run)
    assert store.steps() == [1, 2]
    assert len(part.notes) == 1
    assert part.notes[0].startswith("training waits while a checkpoint is written: a copy needs")
    monkeypatch.setattr("rlcli.trainer.checkpointing.free_ram", lambda: 16)
    store.save_if_due(3, run)
    store.close(run)
    assert part.writers == [MAIN, MAIN, "checkpoint_0"]


def test_every_ten_minutes_counts_from_the_last_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("rlcli.trainer.checkpointing.time.monotonic", lambda: now[0])
    run, part = make_run()
    store = checkpoints(tmp_path, save_every=0)
    for step, second in enumerate([599.0, 600.0, 700.0, 1199.0, 1300.0], start=1):
        now[0] = second
        store.save_if_due(step, run)
        store.wait(run)
    assert store.steps() == [2, 5]
    now[0], part.fail_with = 1900.0, 28
    for step in (6, 7):
        store.save_if_due(step, run)
        store.wait(run)
    assert len(part.notes) == 2


def test_the_files_of_both_ways_are_the_same(tmp_path: Path) -> None:
    run, part = make_run()
    part.value = 3.0
    hashes = []
    for name, saves in (("behind", "save_if_due"), ("now", "save")):
        store = checkpoints(tmp_path / name)
        getattr(store, saves)(1, run)
        store.close(run)
        folder = tmp_path / name / "step_1"
        hashes.append(json.loads((folder / "manifest.json").read_text()))
    assert part.writers == ["checkpoint_0", MAIN]
    assert hashes[0] == hashes[1]
