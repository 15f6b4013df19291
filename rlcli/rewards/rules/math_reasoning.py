"""Grades the guides' `math_reasoning` rows: number golds as numbers, others as mathematics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlcli.rewards.rules import gsm8k


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
) -> float:
    """1.0 when the response's final answer equals the gold, else 0.0."""
    if gsm8k.parse_gold(ground_truth):
        return gsm8k.compute_score(data_source, solution_str, ground_truth, extra_info)
    from rlcli.rewards.rules import math

    return math.compute_score(data_source, solution_str, ground_truth, extra_info)


def gold_problem(ground_truth: Any) -> str | None:
    """Why this gold cannot be graded against; None when it can."""
    if gsm8k.parse_gold(ground_truth):
        return None
    from rlcli.rewards.rules import math

    return math.gold_problem(ground_truth)
