"""Scores of rollouts: rules and users' functions, judges, reward models, and mixes of them."""

from __future__ import annotations

from rlcli.rewards.build import (
    build_scorer,
    check_reward,
    needs_model,
    probe_reward,
    reference_problems,
    rules_in_use,
)
from rlcli.rewards.combination import mixes_environment
from rlcli.rewards.passing import PASSED, accuracy_scores, episode_accuracy, pass_scores

__all__ = [
    "PASSED",
    "accuracy_scores",
    "build_scorer",
    "check_reward",
    "episode_accuracy",
    "mixes_environment",
    "needs_model",
    "pass_scores",
    "probe_reward",
    "reference_problems",
    "rules_in_use",
]
