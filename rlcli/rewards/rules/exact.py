"""Grades by equality of texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlcli.rewards.rules.references import problem_of_any, score_any
from rlcli.rewards.rules.undecided import InvalidReference


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
) -> float:
    """1.0 when the response equals the reference answer, ignoring outer whitespace, else 0.0.

    Any of a list of reference answers counts. JSON text is compared as text.

    Raises:
        InvalidReference: the reference answer is empty or not text or a number.
    """
    return score_any(
        ground_truth, lambda reference: _score(solution_str, reference), reads_json=False
    )


def _score(solution_str: str, reference: Any) -> float:
    if problem := _problem(reference):
        raise InvalidReference(problem)
    return float(solution_str.strip() == str(reference).strip())


def reference_problem(ground_truth: Any, extra_info: Mapping[str, Any] | None = None) -> str | None:
    """Why this reference answer cannot be graded against; None when it can."""
    return problem_of_any(ground_truth, _problem, reads_json=False)


def _problem(reference: Any) -> str | None:
    if not isinstance(reference, str | int | float):
        return f"ground_truth is {type(reference).__name__}, expected text or a number"
    return None if str(reference).strip() else "ground_truth is empty"
