"""The disk a run takes is kept within its budget."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlcli.system.disk import DiskBudget, gib


def write(path: Path, size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


def test_rollouts_go_first_then_checkpoints_and_each_is_told_once(tmp_path: Path) -> None:
    rollouts = [write(tmp_path / "rollouts" / f"step_{i:06d}.jsonl", 100) for i in (1, 2, 3)]
    spare = [write(tmp_path / "checkpoints" / f"step_{i}" / "x", 100).parent for i in (1, 2)]
    budget = DiskBudget(tmp_path, 450 / 2**30)
    notes = budget.make_room(spare)
    assert [path.exists() for path in (*rollouts, *spare)] == [False, True, True, True, True]
    assert ["oldest rollouts" in note for note in notes] == [True]
    notes = budget.make_room(spare, coming=200)
    assert [path.exists() for path in (*rollouts, *spare)] == [False, False, True, False, True]
    assert ["fewer checkpoints" in note for note in notes] == [True]
    assert budget.make_room(spare, coming=200) == []


def test_a_budget_that_cannot_be_kept_is_said_once(tmp_path: Path) -> None:
    write(tmp_path / "metrics.jsonl", 5000)
    budget = DiskBudget(tmp_path, 1000 / 2**30)
    (note,) = budget.make_room([])
    assert "takes 4.88 KiB all the same" in note
    assert budget.make_room([]) == []


@pytest.mark.parametrize(
    ("size", "words"), [(3.12 * 2**30, "3.12 GiB"), (41 * 2**20, "41.0 MiB"), (100, "0.10 KiB")]
)
def test_sizes_in_three_digits(size: float, words: str) -> None:
    assert gib(size) == words
