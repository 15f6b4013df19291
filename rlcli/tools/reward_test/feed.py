"""Responses handed to a scorer, as many at a time as it works on at once."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

from rlcli.errors import Paused
from rlcli.rewards.base import Scorer
from rlcli.tools.reward_test.rows import Case
from rlcli.types import Reward

Progress = Callable[[str, int, int], None]
"""Called with (phase, responses done, responses in total)."""
LEAST_LOST = 5
"""Fewest consecutive outages that end a trial."""
NOT_SCORED = Reward(value=None, error="not scored: the trial ended before")


class Feed:
    """Keeps `window` responses at the scorer, so that no response's time includes a queue.

    Ends the trial after `window` consecutive outages: each takes the full time of all retries, so
    thousands would take days.
    seconds: of every response, in the order of completion. end: reason for an early end; later
    responses are not scored.
    """

    def __init__(self, scorer: Scorer, *, window: int, progress: Progress) -> None:
        self.seconds: list[float] = []
        self.end: BaseException | None = None
        self._scorer = scorer
        self._window = window
        self._progress = progress
        self._lost = 0

    def turn_to(self, scorer: Scorer) -> None:
        """Hand over to another scorer from here on."""
        self._scorer = scorer

    def score(self, phase: str, cases: Sequence[Case]) -> list[Reward]:
        """Rewards in the order of `cases`. Ctrl-C and the end of a service leave the rest out."""
        rewards = [NOT_SCORED] * len(cases)
        waiting: dict[int, Future[Reward]] = {}
        try:
            if self.end is None:
                self._score(phase, cases, rewards, waiting)
        except (Paused, KeyboardInterrupt) as end:
            self.end = end
            for at, future in waiting.items():
                if future.done() and not future.cancelled() and future.exception() is None:
                    rewards[at] = future.result()
        return rewards

    def _score(
        self,
        phase: str,
        cases: Sequence[Case],
        rewards: list[Reward],
        waiting: dict[int, Future[Reward]],
    ) -> None:
        done: queue.SimpleQueue[tuple[int, float]] = queue.SimpleQueue()
        begun: list[float] = []
        for finished in range(len(cases)):
            while len(begun) < len(cases) and len(waiting) < self._window:
                at = len(begun)
                begun.append(time.perf_counter())
                waiting[at] = self._scorer.submit(cases[at].rollout())
                waiting[at].add_done_callback(partial(_note, done, at))
            at, ended = done.get()
            rewards[at] = waiting[at].result()
            del waiting[at]
            self.seconds.append(ended - begun[at])
            self._progress(phase, finished + 1, len(cases))
            self._count_lost(rewards[at])

    def _count_lost(self, reward: Reward) -> None:
        """Count consecutive outages. Raises: Paused if there are too many."""
        if reward.value is not None:
            self._lost = 0
        self._lost += reward.is_outage
        if self._lost >= max(self._window, LEAST_LOST):
            raise Paused(f"{self._lost} responses in a row got no answer: {reward.error}")


def _note(done: queue.SimpleQueue[tuple[int, float]], at: int, _: Future[Reward]) -> None:
    done.put((at, time.perf_counter()))
