"""A weighted sum of several scores, that of a reward model on a scale of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

from rlcli.rewards.base import Scorer, single_rank
from rlcli.rewards.combination import PART_OF
from rlcli.rewards.normalize import Normalizer
from rlcli.types import Prompt, Reward, Rollout, StepRecord

SCALED = PART_OF["model"]
"""The part that a scale is for."""
SCALE = "scale"
"""The entry of the state that keeps it."""


class CompositeScorer:
    """A `Scorer` whose reward is the weighted sum of others'; each part is kept by its name.

    scale: of the reward model's part, applied in `settle`; the parts stay raw. None: it is raw.
    gather: collects the scores of every rank, so that all ranks share one scale.
    """

    def __init__(
        self,
        scorers: Mapping[str, Scorer],
        weights: Mapping[str, float],
        *,
        scale: Normalizer | None = None,
        gather: Callable[[list[float]], list[list[float]]] = single_rank,
    ) -> None:
        assert scorers.keys() == weights.keys()
        self._scorers = dict(scorers)
        self._weights = dict(weights)
        self._scale, self._gather = scale, gather

    def submit(self, rollout: Rollout, *, before: Reward | None = None) -> Future[Reward]:
        """Begin to score one rollout with every part that is not there yet; returns at once."""
        whole: Future[Reward] = Future()
        before = before or Reward(value=None)
        known, reason = before.parts, before.reason
        parts = {
            name: _given(known[name], reason) if name in known else scorer.submit(rollout)
            for name, scorer in self._scorers.items()
        }
        counter = _Countdown(len(parts))
        for part in parts.values():
            part.add_done_callback(partial(self._finish, whole, parts, counter))
        return whole

    def canaries(self, step: int, prompts: Sequence[Prompt]) -> list[Future[Reward]]:
        """Those of the judge, where it is a part."""
        return [one for scorer in self._scorers.values() for one in scorer.canaries(step, prompts)]

    def normalize(self, rewards: Sequence[Reward], *, update_stats: bool) -> list[Reward]:
        """The sums with the reward model's part on its scale; what is unscored stays so."""
        if self._scale is None:
            return [*rewards]
        own = [reward.parts[SCALED] for reward in rewards if reward.value is not None]
        raw = [score for each in self._gather(own) for score in each]
        if not raw:
            return [*rewards]
        moments = self._scale.moments(raw, update_stats=update_stats)

        def settled(reward: Reward) -> Reward:
            if reward.value is None:
                return reward
            parts = {**reward.parts, SCALED: moments.scaled(reward.parts[SCALED])}
            return replace(reward, value=_sum(parts, self._weights))

        return [settled(reward) for reward in rewards]

    def trouble(self) -> str | None:
        """That of the first part that has any."""
        return next(filter(None, (one.trouble() for one in self._scorers.values())), None)

    def metrics(self) -> StepRecord:
        """Those of every part."""
        return {k: v for scorer in self._scorers.values() for k, v in scorer.metrics().items()}

    def can_recover(self, unscored: Reward) -> bool:
        """Whether every part that failed can come back."""
        failed = self._scorers.keys() - unscored.parts.keys()
        return all(self._scorers[name].can_recover(unscored) for name in failed)

    def state(self) -> dict[str, Any]:
        """What the parts keep, and the scale."""
        kept = {k: v for scorer in self._scorers.values() for k, v in scorer.state().items()}
        return kept if self._scale is None else {**kept, SCALE: self._scale.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Every part goes on from what was kept."""
        for scorer in self._scorers.values():
            scorer.load_state(state)
        if self._scale is not None:
            self._scale.load_state(state.get(SCALE, {}))

    def close(self) -> None:
        """Stop every part."""
        with ExitStack() as parts:
            for scorer in self._scorers.values():
                parts.callback(scorer.close)

    def _finish(
        self,
        whole: Future[Reward],
        parts: Mapping[str, Future[Reward]],
        counter: _Countdown,
        _: Future[Reward],
    ) -> None:
        """Called at the end of each part; the last one ends the whole."""
        if not counter.is_last() or not whole.set_running_or_notify_cancel():
            return
        if any(part.cancelled() for part in parts.values()):
            whole.set_result(Reward(value=None, error="the scorer was closed"))
            return
        errors = [error for part in parts.values() if (error := part.exception())]
        if errors:
            whole.set_exception(errors[0])
            return
        rewards = {name: part.result() for name, part in parts.items()}
        whole.set_result(weighted_sum(rewards, weights=self._weights))


def _given(value: float, reason: str | None) -> Future[Reward]:
    """A part that was scored before; what it cost is in the earlier reward."""
    future: Future[Reward] = Future()
    future.set_result(Reward(value=value, reason=reason))
    return future


class _Countdown:
    """Tells which of `count` calls is the last one, from any threads."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._lock = threading.Lock()

    def is_last(self) -> bool:
        with self._lock:
            self._left -= 1
            return self._left == 0


def weighted_sum(rewards: Mapping[str, Reward], *, weights: Mapping[str, float]) -> Reward:
    """Sum of weight * value with the raw values as parts; unscored when one of them is."""
    parts = {name: reward.value for name, reward in rewards.items() if reward.value is not None}
    usage: dict[str, float] = {}
    for reward in rewards.values():
        for name, amount in reward.usage.items():
            usage[name] = usage.get(name, 0.0) + amount
    failed = [f"{name}: {r.error}" for name, r in rewards.items() if r.value is None]
    return Reward(
        value=None if failed else _sum(parts, weights),
        parts=parts,
        error="; ".join(failed) or None,
        usage=usage,
        is_outage=any(reward.is_outage for reward in rewards.values()),
        reason=next((reward.reason for reward in rewards.values() if reward.reason), None),
    )


def _sum(parts: Mapping[str, float], weights: Mapping[str, float]) -> float:
    return sum(weight * parts[name] for name, weight in weights.items())
