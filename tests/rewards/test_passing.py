"""What counts as a pass under each reward."""

from __future__ import annotations

import pytest

from rlcli.config.rewards import JudgeConfig, RewardConfig
from rlcli.rewards import accuracy_scores, pass_scores
from rlcli.types import Reward

JUDGE = JudgeConfig(enabled=True)
REWARDS = [
    Reward(value=2.0, parts={"rm_score": 3.0, "rule_score": 0.0, "judge": 0.25}),
    Reward(value=None, parts={"rule_score": 1.0}, error="busy"),
    Reward(value=-1.0, parts={"rm_score": -2.0, "rule_score": 1.0, "judge": 0.75}),
]


@pytest.mark.parametrize(
    ("config", "scores"),
    [
        (RewardConfig(), [2.0, None, -1.0]),
        (RewardConfig(judge=JUDGE), [2.0, None, -1.0]),
        (RewardConfig(judge=JudgeConfig(enabled=True, rule_first=True)), [2.0, None, -1.0]),
        (RewardConfig(model="m"), None),
        (RewardConfig(model="m", normalize="running"), None),
        (RewardConfig(model="m", composite=True, weights={"rm_score": 1.0}), None),
        (
            RewardConfig(
                model="m", judge=JUDGE, composite=True, weights={"rm_score": 1.0, "judge": 1.0}
            ),
            None,
        ),
        (
            RewardConfig(model="m", composite=True, weights={"rm_score": 0.7, "rule_score": 0.3}),
            [0.0, None, 1.0],
        ),
        (RewardConfig(judge=JUDGE, composite=True, weights={"judge": 9.0}), [0.25, None, 0.75]),
    ],
)
def test_the_rules_part_decides_and_a_reward_models_score_never(
    config: RewardConfig, scores: list[float | None] | None
) -> None:
    assert pass_scores(config, REWARDS) == scores


@pytest.mark.parametrize(
    ("config", "is_accuracy"),
    [
        (RewardConfig(), True),
        (RewardConfig(judge=JUDGE), False),
        (RewardConfig(judge=JudgeConfig(enabled=True, rule_first=True)), False),
        (RewardConfig(judge=JUDGE, composite=True, weights={"judge": 9.0}), False),
        (
            RewardConfig(judge=JUDGE, composite=True, weights={"judge": 0.5, "rule_score": 0.5}),
            True,
        ),
        (RewardConfig(model="m"), False),
    ],
)
def test_a_judges_score_is_no_accuracy(config: RewardConfig, is_accuracy: bool) -> None:
    assert (accuracy_scores(config, REWARDS) is not None) is is_accuracy
