"""Checkpoints: whole or not there, checked before use, and to the bit what was saved."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checkpoint_parts import Counter, checkpoints, make_run

from rlcli.algos.kl import AdaptiveKL
from rlcli.data.prompts import PromptStream
from rlcli.errors import CheckpointError, TrainingError
from rlcli.run_dir.checkpoint import damage, seal
from rlcli.types import Prompt

ROOT = Path(__file__).resolve().parents[2]


def save_steps(folder: Path, *steps: int, **changes: Any) -> Counter:
    run, part = make_run()
    store = checkpoints(folder, **changes)
    for step in steps:
        part.value = float(step)
        store.save_if_due(step, run)
    store.close(run)
    return part


def test_the_newest_checkpoint_comes_back(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2, 3)
    run, part = make_run()
    assert checkpoints(tmp_path).restore(run) == 3
    assert part.value == 3.0


def test_a_step_can_be_asked_for_and_later_ones_are_set_aside(tmp_path: Path) -> None:
    save_steps(tmp_path, 2, 3)
    run, part = make_run()
    store = checkpoints(tmp_path, resume=2)
    assert store.restore(run) == 2
    assert part.value == 2.0
    assert store.steps() == [2]
    assert (tmp_path / "aside_step_3").is_dir()
    with pytest.raises(CheckpointError, match="no checkpoint of step 7; it has: 2"):
        checkpoints(tmp_path, resume=7).restore(run)


def test_the_kl_coefficient_and_the_place_among_the_prompts_come_back(tmp_path: Path) -> None:
    prompts = [Prompt(id=str(i), messages=(), token_ids=(i,)) for i in range(9)]

    def parts() -> Any:
        run, _ = make_run()
        run.algorithm.kl = AdaptiveKL(0.1, target=0.1, horizon=10)
        run.prompts = PromptStream(prompts, seed=3, shuffle=True)
        return run

    run = parts()
    run.algorithm.kl.update(1.0, 5)  # too high: 0.1 * (1 + 0.2 * 5 / 10)
    run.prompts.next(4)
    checkpoints(tmp_path).save(1, run)
    resumed = parts()
    checkpoints(tmp_path).restore(resumed)
    assert resumed.algorithm.kl.coef == run.algorithm.kl.coef == pytest.approx(0.11)
    assert resumed.prompts.next(5) == run.prompts.next(5)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


HARM = {
    "bit flipped": lambda folder: flip_a_bit(folder / "policy.safetensors"),
    "cut": lambda folder: (folder / "policy.safetensors").write_bytes(b"x"),
    "file missing": lambda folder: (folder / "policy.safetensors").unlink(),
    "state changed": lambda folder: (folder / "state.json").write_text("{}"),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "manifest cut": lambda folder: (folder / "manifest.json").write_text('{"sha'),
}


@pytest.mark.parametrize("harm", HARM)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, harm: str
) -> None:
    save_steps(tmp_path, 1, 2)
    HARM[harm](tmp_path / "step_2")
    run, part = make_run()
    assert checkpoints(tmp_path).restore(run) == 1
    assert part.value == 1.0
    assert "step_2" in part.notes[0]
    assert "falling back to step 1" in part.notes[0]


def test_when_all_are_damaged_nothing_is_deleted_and_the_run_does_not_start(
    tmp_path: Path,
) -> None:
    save_steps(tmp_path, 1, 2)
    for step in (1, 2):
        flip_a_bit(tmp_path / f"step_{step}" / "policy.safetensors")
    run, _ = make_run()
    with pytest.raises(CheckpointError, match="nothing was deleted"):
        checkpoints(tmp_path).restore(run)
    assert checkpoints(tmp_path).steps() == [1, 2]


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    run, part = make_run()
    store = checkpoints(tmp_path, keep=2)
    for step, score in enumerate([0.1, 0.9, 0.2, 0.3, 0.4], start=1):
        part.evaluations.append((step, score))
        store.save_if_due(step, run)
    store.wait(run)
    assert store.steps() == [2, 4, 5]


def test_without_a_pass_rate_the_highest_reward_is_the_best(tmp_path: Path) -> None:
    run, part = make_run()
    store = checkpoints(tmp_path, keep=2)
    for step, reward in enumerate([-3.0, 7.5, -2.0, 3.0, 4.0], start=1):
        part.held_out_rewards.append((step, reward))
        store.save_if_due(step, run)
    store.wait(run)
    assert store.steps() == [2, 4, 5]


def test_what_the_reward_keeps_comes_back_and_may_be_absent(tmp_path: Path) -> None:
    run, part = make_run()
    part.spent = {"spent_usd": 0.25}
    checkpoints(tmp_path).save(1, run)
    run, part = make_run()
    checkpoints(tmp_path).restore(run)
    assert part.spent == {"spent_usd": 0.25}
    file = tmp_path / "step_1" / "state.json"
    state = json.loads(file.read_text())
    del state["scorer"]
    file.write_text(json.dumps(state))
    seal(tmp_path / "step_1", tmp_path / "step_2")
    run, part = make_run()
    assert checkpoints(tmp_path).restore(run) == 2
    assert part.spent == {}


def test_save_freq_minus_one_keeps_one_rolling_checkpoint(tmp_path: Path) -> None:
    run, _ = make_run()
    store = checkpoints(tmp_path, save_every=-1)
    for step in (1, 2, 3):
        store.save_if_due(step, run)
    assert store.steps() == []
    store.save(4, run)
    store.save(5, run)
    assert store.steps() == [5]


def test_folders_set_aside_go_once_the_run_has_passed_them(tmp_path: Path) -> None:
    save_steps(tmp_path, 2, 3, 4)
    run, _ = make_run()
    store = checkpoints(tmp_path, resume=3)
    store.restore(run)
    store.save(3, run)
    assert (tmp_path / "aside_step_4").is_dir()
    store.save(4, run)
    assert not (tmp_path / "aside_step_4").exists()


def test_a_disk_budget_keeps_the_newest_then_the_best(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    run, part = make_run()
    one = save_steps(folder, 1)
    assert one.notes == []
    size = sum(p.stat().st_size for p in (folder / "step_1").iterdir())
    store = checkpoints(folder, keep=5, disk_budget=3.5 * size / 2**30)
    for step, score in ((2, 0.9), (3, 0.1), (4, 0.2), (5, 0.3)):
        part.evaluations.append((step, score))
        store.save(step, run)
        assert len(store.steps()) <= 3
    assert store.steps() == [2, 4, 5]
    assert len(part.notes) == 1
    store = checkpoints(folder, keep=5, disk_budget=0.5 * size / 2**30)
    store.save(6, run)
    assert store.steps() == [6]
    assert damage(folder / "step_6") is None


def test_a_full_disk_is_survived_twice(tmp_path: Path) -> None:
    run, part = make_run()
    store = checkpoints(tmp_path)
    store.save(1, run)
    part.fail_with = 28
    store.save(2, run)
    store.save(3, run)
    assert ["disk is full" in note for note in part.notes] == [True, True]
    assert store.steps() == [1]
    assert damage(tmp_path / "step_1") is None
    assert not list(tmp_path.glob(".part*"))
    with pytest.raises(TrainingError, match="3 checkpoints in a row"):
        store.save(4, run)


def test_a_replacement_cut_between_its_renames_is_undone(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    os.rename(tmp_path / "step_1", tmp_path / ".old-step_1")
    (tmp_path / ".part-step_2").mkdir()
    run, part = make_run()
    assert checkpoints(tmp_path).restore(run) == 1
    assert part.value == 1.0
    assert not list(tmp_path.glob(".*"))


def crash(mode: str, model: Path, folder: Path, count: int) -> list[dict[str, Any]]:
    script = ROOT / "tests" / "support" / "crash_runs.py"
    done = subprocess.run(
        [sys.executable, str(script), mode, str(model), str(folder), str(count)],
        capture_output=True,
        text=True,
        timeout=3000,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(results: list[dict[str, Any]], count: int, code: int) -> None:
    assert len(results) == count
    for result in results:
        assert result["same"], result
        assert result["exits"][-1] == 0
    assert sum(result["exits"][0] == code for result in results) >= count // 2


@pytest.mark.parametrize("count", [3, pytest.param(12, marks=pytest.mark.nightly)])
def test_a_run_killed_inside_the_protocol_ends_bit_equal(
    count: int, tiny_model: Path, tmp_path: Path
) -> None:
    check(crash("protocol", tiny_model, tmp_path, count), count, 9)


def test_a_run_killed_while_it_writes_beside_training_ends_bit_equal(
    tiny_model: Path, tmp_path: Path
) -> None:
    results = crash("behind", tiny_model, tmp_path, 5)
    check(results, 5, 9)
    assert [result["exits"][0] for result in results] == [9] * 5


@pytest.mark.parametrize("count", [3, pytest.param(50, marks=pytest.mark.nightly)])
def test_a_run_killed_anywhere_ends_bit_equal(count: int, tiny_model: Path, tmp_path: Path) -> None:
    check(crash("random", tiny_model, tmp_path, count), count, -9)
