"""Which responses pass, in a run's own evaluation and in `rlcli eval`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlcli.rewards.combination import PART_OF, Combination, combine, mixes_environment
from rlcli.types import Reward

if TYPE_CHECKING:
    from rlcli.config.rewards import RewardConfig

PASSED = 0.5
"""Smallest score that counts as a pass."""


def pass_scores(config: RewardConfig, rewards: Sequence[Reward]) -> list[float | None] | None:
    """The scores that `PASSED` is held against, None where unscored; None: there is no such scale.

    Of a mix the rule's part decides, else the judge's; under rule-first the score itself does.
    A reward model's scores have no scale.
    """
    combination = combine(config)
    if not combination.uses("fn") and combination.uses("model"):
        return None
    part = _deciding(combination)
    return [
        reward.parts[part] if part and reward.value is not None else reward.value
        for reward in rewards
    ]


def accuracy_scores(config: RewardConfig, rewards: Sequence[Reward]) -> list[float | None] | None:
    """`pass_scores` if a rule or a function decides every response, else None.

    A judge's 0.5 is not an accuracy.
    """
    combination = combine(config)
    if combination.is_rule_first or not combination.uses("fn"):
        return None
    return pass_scores(config, rewards)


def episode_accuracy(
    config: RewardConfig, rewards: Sequence[Reward], *, pass_mark: float | None
) -> list[float | None] | None:
    """1 if an episode's environment reward passes, otherwise 0; None if it is unscored.

    pass_mark: smallest reward that passes; None: `PASSED` if all rewards are within 0 and 1, and
    no scale otherwise.
    """
    part = PART_OF["env"] if mixes_environment(config) else None
    values = [r.parts[part] if part and r.value is not None else r.value for r in rewards]
    if pass_mark is None:
        if any(value is not None and not 0.0 <= value <= 1.0 for value in values):
            return None
        pass_mark = PASSED
    return [None if value is None else float(value >= pass_mark) for value in values]


def _deciding(combination: Combination) -> str | None:
    """The part of a mix; None where one reward scores alone."""
    if not combination.is_composite:
        return None
    if combination.uses("fn"):
        return PART_OF["fn"]
    (only,) = combination.sources
    return only
