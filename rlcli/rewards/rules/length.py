"""Grades the length of a response against a target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any = None,
    extra_info: Mapping[str, Any] | None = None,
) -> float:
    """The share of `extra_info.target_length` (characters) that is there, at most 1.0.

    Raises:
        ValueError: the row has no positive target_length.
    """
    if problem := reference_problem(ground_truth, extra_info):
        raise ValueError(problem)
    return min(1.0, len(solution_str) / (extra_info or {})["target_length"])


def reference_problem(ground_truth: Any, extra_info: Mapping[str, Any] | None = None) -> str | None:
    """Why a row cannot be graded (no positive target_length); None when it can."""
    target = (extra_info or {}).get("target_length")
    if isinstance(target, bool) or not isinstance(target, int | float) or not target > 0:
        return f"extra_info.target_length is {target!r}, expected a number above 0"
    return None
