"""Scores rollouts in batches, in threads of their own, while sampling goes on."""

from __future__ import annotations

import queue
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from rlcli.rewards.threaded_scorer import Job, ThreadedScorer
from rlcli.types import Reward, Rollout

GATHER_S = 0.02
"""How long the first rollout of a batch waits for others to join it."""


class BatchRater(Protocol):
    """Rates many rollouts at once; one that cannot be rated is a `Reward` without a value."""

    is_service: bool
    max_batch: int

    def rate(self, rollouts: Sequence[Rollout]) -> list[Reward]:
        """Rewards in the order of `rollouts`."""
        ...

    def close(self) -> None:
        """Give up what is being waited for."""
        ...


class BatchScorer(ThreadedScorer):
    """A `Scorer` over a rater, with `threads` batches under way at a time."""

    def __init__(self, rater: BatchRater, *, threads: int = 1) -> None:
        super().__init__()
        self._rater = rater
        self._start("rate", [self._serve] * threads)

    def can_recover(self, unscored: Reward) -> bool:
        """Whether the rater is a service."""
        return self._rater.is_service

    def _give_up(self) -> None:
        self._rater.close()

    def _serve(self) -> None:
        while (first := self._jobs.get()) is not None:
            jobs, is_last = self._gather(first)
            jobs = [job for job in jobs if job[0].set_running_or_notify_cancel()]
            if jobs:
                self._rate(jobs)
            if is_last:
                return

    def _rate(self, jobs: Sequence[Job]) -> None:
        try:
            rewards = self._rater.rate([rollout for _, rollout in jobs])
            for (future, _), reward in zip(jobs, rewards, strict=True):
                future.set_result(reward)
        except BaseException as error:  # a bug of ours: whoever waits must see it
            for future, _ in jobs:
                if not future.done():
                    future.set_exception(error)

    def _gather(self, first: Job) -> tuple[list[Job], bool]:
        """(a batch that begins with `first`, whether the end was reached)."""
        jobs = [first]
        deadline = time.monotonic() + GATHER_S
        with suppress(queue.Empty):
            while len(jobs) < self._rater.max_batch:
                job = self._jobs.get(timeout=max(0.0, deadline - time.monotonic()))
                if job is None:
                    return jobs, True
                jobs.append(job)
        return jobs, False
