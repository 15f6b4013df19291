"""Grades the guides' `math_reasoning` rows: number golds as numbers, others as mathematics."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from rlcli.rewards.rules import gsm8k
from rlcli.rewards.rules.references import problem_of_any, score_any


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
) -> float:
    """1.0 when the response's final answer equals the reference answer, else 0.0."""
    return score_any(
        ground_truth,
        lambda reference: _rule(reference).compute_score(
            data_source, solution_str, reference, extra_info
        ),
    )


def reference_problem(ground_truth: Any, extra_info: Mapping[str, Any] | None = None) -> str | None:
    """Why this reference answer cannot be graded against; None when it can."""
    return problem_of_any(
        ground_truth, lambda reference: _rule(reference).reference_problem(reference)
    )


def _rule(reference: Any) -> ModuleType:
    if gsm8k.parse_gold(reference):
        return gsm8k
    from rlcli.rewards.rules import math

    return math
