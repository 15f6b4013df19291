"""A function that decides what it can, and a judge for the rest."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from rlcli.rewards.base import Scorer, single_rank
from rlcli.rewards.combination import PART_OF
from rlcli.types import Prompt, Reward, Rollout, StepRecord

RULE, JUDGE = PART_OF["fn"], PART_OF["judge"]


class RuleFirstScorer:
    """A `Scorer` that calls its judge for each response on which the rule is undecided.

    Value and part are the rule's if it decides, else the judge's. A rule that fails leaves its
    rollout unscored: a judge must not hide a bug. gather: collects the counts of every rank, so
    that `judge/asked_share` is that of all ranks.
    """

    def __init__(
        self,
        rule: Scorer,
        judge: Scorer,
        *,
        gather: Callable[[list[int]], list[list[int]]] = single_rank,
    ) -> None:
        self._rule, self._judge, self._gather = rule, judge, gather
        self._lock = threading.Lock()
        self._num_decided = 0
        self._num_asked = 0

    def submit(self, rollout: Rollout, *, before: Reward | None = None) -> Future[Reward]:
        """Begin to score one rollout; returns at once. Where the judge failed, only it is asked."""
        whole: Future[Reward] = Future()
        if before is not None and before.is_undecided:
            self._ask(whole, rollout)
        else:
            rule = self._rule.submit(rollout)
            rule.add_done_callback(lambda done: self._after_rule(whole, rollout, done))
        return whole

    def canaries(self, step: int, prompts: Sequence[Prompt]) -> list[Future[Reward]]:
        """Those of the judge."""
        return self._judge.canaries(step, prompts)

    def normalize(self, rewards: Sequence[Reward], *, update_stats: bool) -> list[Reward]:
        """The rewards as they are."""
        return [*rewards]

    def trouble(self) -> str | None:
        """The judge's."""
        return self._judge.trouble()

    def metrics(self) -> StepRecord:
        """Those of the judge, and `judge/asked_share`: of the rollouts that the rule looked at."""
        with self._lock:
            own = [self._num_asked, self._num_asked + self._num_decided]
            self._num_asked = self._num_decided = 0
        asked, total = map(sum, zip(*self._gather(own), strict=True))
        share = {"judge/asked_share": asked / total} if total else {}
        return self._judge.metrics() | share

    def can_recover(self, unscored: Reward) -> bool:
        """Whether it was the judge that failed, and it can come back."""
        failed = self._judge if unscored.is_undecided else self._rule
        return failed.can_recover(unscored)

    def state(self) -> dict[str, Any]:
        """What the judge keeps."""
        return self._judge.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """The judge goes on from what was kept."""
        self._judge.load_state(state)

    def close(self) -> None:
        """Stop both."""
        with ExitStack() as both:
            both.callback(self._judge.close)
            both.callback(self._rule.close)

    def _after_rule(self, whole: Future[Reward], rollout: Rollout, done: Future[Reward]) -> None:
        """The rule's reward, or the judge is asked; in whichever thread the rule ended."""
        reward = _outcome(done)
        if isinstance(reward, Reward) and reward.is_undecided:
            self._count(asked=True)
            self._ask(whole, rollout)
            return
        if isinstance(reward, Reward) and reward.value is not None:
            self._count(asked=False)
            reward = replace(reward, parts={RULE: reward.value})
        _end(whole, reward)

    def _ask(self, whole: Future[Reward], rollout: Rollout) -> None:
        try:
            judge = self._judge.submit(rollout)
        except BaseException as error:  # closed by now, or a bug of ours: whoever waits must see it
            _end(whole, error)
            return
        judge.add_done_callback(lambda done: _end(whole, _judged(_outcome(done))))

    def _count(self, *, asked: bool) -> None:
        with self._lock:
            self._num_asked += asked
            self._num_decided += not asked


def _outcome(done: Future[Reward]) -> Reward | BaseException:
    if done.cancelled():
        return Reward(value=None, error="the scorer was closed")
    return done.exception() or done.result()


def _judged(reward: Reward | BaseException) -> Reward | BaseException:
    """The judge's word as the whole reward; undecided still, where it has none."""
    if isinstance(reward, BaseException):
        return reward
    parts = {} if reward.value is None else {JUDGE: reward.value}
    return replace(reward, parts=parts, is_undecided=reward.value is None)


def _end(whole: Future[Reward], outcome: Reward | BaseException) -> None:
    if not whole.set_running_or_notify_cancel():
        return
    if isinstance(outcome, BaseException):
        whole.set_exception(outcome)
    else:
        whole.set_result(outcome)
