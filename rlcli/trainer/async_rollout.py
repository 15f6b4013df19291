"""Samples one step ahead of the update (rollout.async_steps)."""

from __future__ import annotations

from rlcli.rollout.collate import ScoredRollouts
from rlcli.trainer.rollout_step import PendingRollouts, begin, end
from rlcli.trainer.run import Run
from rlcli.trainer.validation import is_evaluation_due
from rlcli.types import StepRecord


class AsyncRollouts:
    """Samples the next step before the rewards of this one are waited for: one policy older.

    Nothing is ahead of a checkpoint, an evaluation or the end: a run that is resumed samples what
    the uninterrupted one did.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._next: PendingRollouts | None = None
        self._before: dict[str, int] = {}

    def state(self) -> dict[str, int]:
        """Where the prompts stand without those of the step that is ahead."""
        return self._before if self._next else self._run.prompts.state()

    @property
    def epoch(self) -> int:
        """Passes over the data that are complete without it."""
        return self.state()["epoch"]

    def collect(self, record: StepRecord, step: int) -> ScoredRollouts:
        """This step's rollouts with their rewards. Where it fails, nothing more is ahead."""
        begun = self._next or self._begin(record, step)
        before = self._run.prompts.state()
        following = self._begin(record, step + 1) if self._may_begin(step + 1) else None
        collected = end(self._run, begun, record, step=step)
        self._next, self._before = following, before
        return collected

    def give_up(self) -> None:
        """The prompts that were sampled ahead are the next ones again."""
        self._run.prompts.load_state(self.state())
        self._next = None

    def _begin(self, record: StepRecord, step: int) -> PendingRollouts:
        prompts = self._run.prompts.next(self._run.config.train.prompts_per_step)
        return begin(self._run, prompts, record, step=step)

    def _may_begin(self, step: int) -> bool:
        """Whether `step` is still to come, and nothing is due before it."""
        run = self._run
        is_due = is_evaluation_due(run, step) or run.ranks.first(run.checkpoints.is_due(step))
        return step < run.num_steps and not is_due and not run.should_stop()
