"""Rewards of episodes: the environment's where it gives one, else those of another scorer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from rlcli.config.schema import Config
from rlcli.rewards.base import Scorer, StatelessScorer
from rlcli.types import Prompt, Reward, Rollout, StepRecord

PART = "env"
"""Part of a composite reward that the environment gives."""


def turn_weight(config: Config) -> float | None:
    """Weight of a turn's reward in an episode's score; None where turns are not credited."""
    if not config.env.is_on or config.env.credit == "outcome":
        return None
    return config.reward.weights.get(PART, 1.0) if config.reward.composite else 1.0


class EnvironmentScorer(StatelessScorer):
    """The rewards that rollouts bring with them."""

    def submit(self, rollout: Rollout, *, before: Reward | None = None) -> Future[Reward]:
        """The rollout's own reward."""
        future: Future[Reward] = Future()
        missing = Reward(value=None, error="the environment gave no reward")
        future.set_result(rollout.reward or missing)
        return future

    def can_recover(self, unscored: Reward) -> bool:
        """Never: the episode is over."""
        return False

    def close(self) -> None:
        """Nothing runs."""


class EpisodeScorer:
    """Another scorer, which is not asked about episodes whose environment failed."""

    def __init__(self, inner: Scorer) -> None:
        self._inner = inner

    def submit(self, rollout: Rollout, *, before: Reward | None = None) -> Future[Reward]:
        """See Scorer."""
        if rollout.reward is None:
            return self._inner.submit(rollout, before=before)
        future: Future[Reward] = Future()
        future.set_result(rollout.reward)
        return future

    def can_recover(self, unscored: Reward) -> bool:
        """See Scorer."""
        return self._inner.can_recover(unscored)

    def state(self) -> dict[str, Any]:
        """See Scorer."""
        return self._inner.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """See Scorer."""
        self._inner.load_state(state)

    def canaries(self, step: int, prompts: Sequence[Prompt]) -> list[Future[Reward]]:
        """See Scorer."""
        return self._inner.canaries(step, prompts)

    def normalize(self, rewards: Sequence[Reward], *, update_stats: bool) -> list[Reward]:
        """See Scorer."""
        return self._inner.normalize(rewards, update_stats=update_stats)

    def trouble(self) -> str | None:
        """See Scorer."""
        return self._inner.trouble()

    def metrics(self) -> StepRecord:
        """See Scorer."""
        return self._inner.metrics()

    def close(self) -> None:
        """See Scorer."""
        self._inner.close()
