"""When a run is saved, and what it goes on from. Files are written while training goes on.

All ranks take part, with their share of the engine's state; rank 0 alone sees to the folder.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from rlcli.algos.algorithm import Algorithm
from rlcli.config.schema import Config
from rlcli.data.prompts import PromptStream
from rlcli.distributed.collectives import Ranks
from rlcli.engines.base import TrainEngine
from rlcli.errors import CheckpointError, TrainingError
from rlcli.monitor.monitor import Monitor, NullMonitor
from rlcli.rewards.base import Scorer
from rlcli.run_dir.checkpoint import (
    COPY_ROOM,
    CheckpointFolder,
    Resume,
    Save,
    Saved,
    Scores,
    damage,
    seal,
)
from rlcli.run_dir.model_card import write_cards
from rlcli.system.disk import gib
from rlcli.system.hardware import free_ram, memory_swing

SECONDS_BETWEEN = 600.0
MAX_FAILED_SAVES = 3


class SavedRun(Protocol):
    """The parts of a run that a checkpoint saves and restores."""

    config: Config
    num_steps: int
    prompts: PromptStream
    scorer: Scorer
    engine: TrainEngine
    algorithm: Algorithm
    monitor: Monitor | NullMonitor
    tokenizer: Any
    ranks: Ranks

    def should_stop(self) -> bool:
        """Whether the run was asked to stop, the same on every rank."""
        ...


class Checkpoints:
    """Saves a run's state and brings it back. disk_budget: GiB of the run directory.

    While one is being written its folder is the writer's alone: nothing here touches it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        save_every: int,
        keep: int,
        resume: Resume,
        disk_budget: float | None = None,
    ) -> None:
        self.folder = folder
        self.save_every = save_every
        self.resume: Resume = resume
        self._store = CheckpointFolder(
            folder,
            keep=1 if save_every == -1 else keep,
            keeps_best=save_every != -1,
            disk_budget=disk_budget,
        )
        self._saved_at = time.monotonic()
        self._saved_step: int | None = None
        self._not_due = -1
        self._failures = 0
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[Saved] | None = None
        self._told_no_room = False
        self._swing: int | None = None

    def steps(self) -> list[int]:
        """Steps with a checkpoint, oldest first."""
        return self._store.steps()

    def restore(self, run: SavedRun) -> int:
        """Load the checkpoint that `resume` asks for; the step to go on with, 0 for a new run.

        Raises: CheckpointError when checkpoints exist and none of them can be trusted.
        """
        step, state = run.ranks.first(self._find(run) if run.ranks.is_first else (None, {}))
        if step is not None:
            folder = self._store.of(step)
            run.engine.load_state(folder)
            run.prompts.load_state(state["prompts"])
            run.algorithm.kl.load_state(state["kl"])
            run.monitor.load_state(state["monitor"])
            # absent from checkpoints of before
            run.scorer.load_state(state.get("scorer", {}))
            run.monitor.note(f"resumed from {folder}")
            if run.ranks.is_first:
                self._set_aside_later(step)
        elif self.resume != "no":
            run.monitor.load_state({"metrics_offset": 0, "evaluations": []})
        run.monitor.begin(step or 0)
        return step or 0

    def _find(self, run: SavedRun) -> tuple[int | None, dict[str, Any]]:
        """(step to go on from, state of everything but the engine); what was cut is cleared."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for scratch in self.folder.glob(".part-*"):
            shutil.rmtree(scratch)
        self._finish_replacing()
        step = self._choose(run)
        if step is None:
            return None, {}
        return step, json.loads((self._store.of(step) / "state.json").read_text())

    def _finish_replacing(self) -> None:
        """Undo a replacement that was cut between its two renames."""
        for old in self.folder.glob(".old-*"):
            name = self.folder / old.name.removeprefix(".old-")
            if name.exists():
                shutil.rmtree(old)
            else:
                os.rename(old, name)

    def _choose(self, run: SavedRun) -> int | None:
        if self.resume == "no":
            return None
        steps = self.steps()
        if isinstance(self.resume, int):
            if self.resume not in steps:
                have = ", ".join(map(str, steps)) or "none"
                raise CheckpointError(
                    f"{self.folder} has no checkpoint of step {self.resume}; it has: {have}"
                )
            steps = [self.resume]
        bad: list[str] = []
        for step in reversed(steps):
            found = damage(self._store.of(step))
            if found is None:
                for text in bad:
                    run.monitor.note(f"{text}; falling back to step {step}")
                return step
            bad.append(found)
        if bad:
            raise CheckpointError(
                f"none of {len(bad)} checkpoints can be trusted; nothing was deleted.\n"
                + "\n".join(bad[:2])
            )
        return None

    def _set_aside_later(self, step: int) -> None:
        """Checkpoints after the one resumed belong to a course that is not taken."""
        for later in [n for n in self.steps() if n > step]:
            aside = self.folder / f"aside_step_{later}"
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(self._store.of(later), aside)

    def is_due(self, step: int) -> bool:
        """Every save_every steps, or every ten minutes where that is not a number.

        A step that was not due when asked never is: the next one may be under way already.
        """
        if step == self._not_due:
            return False
        if self.save_every > 0:
            due = step % self.save_every == 0
        else:
            due = time.monotonic() - self._saved_at >= SECONDS_BETWEEN
        if not due:
            self._not_due = step
        return due

    def save_if_due(self, step: int, run: SavedRun) -> None:
        """Save where it is due; else see that the disk budget holds.

        In the middle of training the files are written while it goes on; what came of that is
        told here, one of the next times.

        Raises: TrainingError after three failures in a row.
        """
        if self._writing is not None and self._writing.done():
            self.wait(run)
        if not run.ranks.first(self.is_due(step)):
            if run.ranks.is_first and self._writing is None:
                self._tell(run, self._store.make_room(_scores(run)))
        elif step >= run.num_steps or run.should_stop():
            self.save(step, run)
        else:
            self._save_behind(step, run)

    def save(self, step: int, run: SavedRun) -> bool:
        """One checkpoint, written now; whether it could be. A full disk is reported and survived.

        Raises: TrainingError after three failures in a row.
        """
        self.wait(run)
        # after a stop, the same step is asked for more than once
        if run.ranks.first(step == self._saved_step):
            return True
        save = self._now(step, run)
        return run.ranks.first(run.ranks.is_first and self._end(run, self._store.write(save)))

    def _save_behind(self, step: int, run: SavedRun) -> None:
        """A checkpoint of this moment, written while training goes on.

        One that is still being written is waited for: the steps saved are those asked for, and
        there is one copy of the state at most. Without room for a copy, it is written now.
        """
        self.wait(run)
        save = self._now(step, run)
        if not run.ranks.is_first:
            return
        if not self._has_room(run, save.engine.num_bytes):
            self._end(run, self._store.write(save))
            return
        self._saved_at = time.monotonic()
        copied = replace(save, engine=save.engine.copied())
        self._writing = self._writer.submit(self._store.write, copied)

    def _now(self, step: int, run: SavedRun) -> Save:
        """The state of a run, not copied: the engine's tensors are the live ones.

        Other ranks with a share of the state begin to write it.
        """
        state = json.dumps(_state(step, run), indent=1)
        engine = run.engine.state(self._store.scratch(step))
        return Save(step=step, engine=engine, state=state, scores=_scores(run))

    def _has_room(self, run: SavedRun, num_bytes: int) -> bool:
        """Whether a copy of the state fits into memory; where it does not, that is told once."""
        if self._swing is None:
            # asked once: from the first copy on, the peak has one in it
            self._swing = memory_swing()
        room = max(0, free_ram() - self._swing)
        if room >= COPY_ROOM * num_bytes:
            return True
        if not self._told_no_room:
            run.monitor.note(
                "training waits while a checkpoint is written: a copy needs "
                f"{gib(COPY_ROOM * num_bytes)} of free memory, and {gib(room)} is free"
            )
            self._told_no_room = True
        return False

    def wait(self, run: SavedRun) -> None:
        """Until no checkpoint is being written; what came of it is told.

        Raises: TrainingError after three failures in a row.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            self._end(run, writing.result())

    def _end(self, run: SavedRun, saved: Saved) -> bool:
        """Tell what came of a save; whether there is one."""
        self._tell(run, saved.notes)
        if saved.error is None:
            self._failures = 0
            self._saved_at, self._saved_step = time.monotonic(), saved.step
            return True
        self._failures += 1
        self._saved_at = -math.inf
        what = "the disk is full" if saved.error.errno == errno.ENOSPC else str(saved.error)
        if self._failures >= MAX_FAILED_SAVES:
            raise TrainingError(
                f"{self._failures} checkpoints in a row could not be written to "
                f"{self.folder}: {what}. Free some space, then --resume auto."
            ) from saved.error
        run.monitor.note(f"checkpoint of step {saved.step} not written: {what}")
        return False

    def _tell(self, run: SavedRun, notes: Sequence[str]) -> None:
        for note in notes:
            run.monitor.note(note)

    def finish(self, run: SavedRun, step: int) -> None:
        """After the last step: a checkpoint, and the model in Hugging Face format.

        Raises: TrainingError when one of them could not be written.
        """
        self.wait(run)
        is_saved = run.ranks.first(step in self.steps())
        if not is_saved and not self.save(step, run):
            raise TrainingError(
                f"the last checkpoint (step {step}) could not be written to {self.folder}.\n"
                "Free some space; --resume auto goes on from the one before."
            )
        if step < run.num_steps:
            return
        if not run.ranks.is_first:
            run.engine.save_model(None, run.tokenizer, merge_lora=run.config.run.merge_lora)
            return
        scratch = self.folder / ".part-final"
        shutil.rmtree(scratch, ignore_errors=True)
        # weights without their two moments
        self._tell(run, self._store.make_room(_scores(run), share=1 / 3))
        try:
            run.engine.save_model(scratch, run.tokenizer, merge_lora=run.config.run.merge_lora)
            write_cards(
                scratch,
                run.config,
                step=step,
                evaluations=run.monitor.evaluations,
                held_out_rewards=run.monitor.held_out_rewards,
            )
            seal(scratch, self.folder / "final")
        except TrainingError as error:  # it was written, and is not the policy
            shutil.rmtree(scratch, ignore_errors=True)
            raise TrainingError(f"{error}\nTraining is done and saved as step {step}.") from error
        except OSError as error:
            shutil.rmtree(scratch, ignore_errors=True)
            raise TrainingError(
                f"the final model could not be written to {self.folder}: {error}.\n"
                f"Training is done and saved as step {step}: free some space, then --resume auto."
            ) from error
        self._tell(run, self._store.make_room(_scores(run)))

    def close(self, run: SavedRun) -> None:
        """Whatever ended the run: what is being written is finished, what failed is told."""
        try:
            self.wait(run)
        except TrainingError as error:
            run.monitor.note(str(error))
        finally:
            self._writer.shutdown()


def _scores(run: SavedRun) -> Scores:
    """Held-out pass@1 so far; without any, held-out rewards."""
    return [*(run.monitor.evaluations or run.monitor.held_out_rewards)]


def _state(step: int, run: SavedRun) -> dict[str, Any]:
    return {
        "step": step,
        "prompts": run.prompts.state(),
        "kl": run.algorithm.kl.state(),
        "monitor": run.monitor.state(),
        "scorer": run.scorer.state(),
    }
