"""Rewards of episodes: the environment's, those of another scorer, or a mix of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from rlcli.config.schema import Config
from rlcli.rewards import accuracy_scores, episode_accuracy
from rlcli.rewards.base import Scorer, StatelessScorer
from rlcli.rewards.combination import PART_OF
from rlcli.types import Message, Prompt, Reward, Rollout, StepRecord

PART = PART_OF["env"]


def turn_weight(config: Config) -> float | None:
    """Weight of a turn's reward in an episode's score; None where turns are not credited."""
    if not config.env.is_on or config.env.credit == "outcome":
        return None
    return config.reward.weights.get(PART, 1.0) if config.reward.composite else 1.0


def accuracy_of(
    config: Config, rewards: Sequence[Reward], *, scored_by_env: bool
) -> list[float | None] | None:
    """Scores that `PASSED` is held against, None where unscored; None: there is no such scale."""
    if scored_by_env:
        return episode_accuracy(config.reward, rewards, pass_mark=config.env.pass_mark)
    return accuracy_scores(config.reward, rewards)


def with_dialogue(rollout: Rollout) -> Rollout:
    """An episode as a conversation whose last answer is the response.

    The prompt's messages go on with the earlier turns and what the environment replied to them.
    """
    if len(rollout.turns) < 2:
        return rollout
    messages: list[Message] = [*rollout.prompt.messages]
    for turn in rollout.turns[:-1]:
        messages += [{"role": "assistant", "content": turn.text}, *turn.replies]
    return replace(rollout, prompt=replace(rollout.prompt, messages=tuple(messages)))


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
    """Another scorer, which reads whole dialogues and no episode whose environment failed."""

    def __init__(self, inner: Scorer) -> None:
        self._inner = inner

    def submit(self, rollout: Rollout, *, before: Reward | None = None) -> Future[Reward]:
        """See Scorer."""
        if rollout.reward is None or rollout.reward.value is not None:
            return self._inner.submit(with_dialogue(rollout), before=before)
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
