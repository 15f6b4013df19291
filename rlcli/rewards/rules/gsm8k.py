"""Grades answers that are numbers, as in GSM8K."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlcli.data.boxed_answers import gold_box
from rlcli.rewards.rules.answers import final_number, with_opening
from rlcli.rewards.rules.numbers import Number, parse_number, same_number, with_decimal_points
from rlcli.rewards.rules.references import problem_of_any, score_any
from rlcli.rewards.rules.undecided import InvalidReference, Undecided


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
) -> float:
    """1.0 when the response's final number equals the reference answer, else 0.0.

    Undecided without a final number. Any of several reference answers counts.

    Raises:
        InvalidReference: the reference answer is not a number.
    """
    solution_str = with_opening(solution_str, extra_info)
    return score_any(ground_truth, lambda reference: _score(solution_str, reference))


def _score(solution_str: str, reference: Any) -> float:
    gold = parse_gold(reference)
    if gold is None:
        raise InvalidReference(_problem(reference))
    answers = [final_number(solution_str)]
    if gold.value.denominator != 1:  # 3,85 may be a list or a decimal number
        answers.append(final_number(with_decimal_points(solution_str)))
    if any(answer and same_number(gold, answer) for answer in answers):
        return 1.0
    return Undecided() if answers[0] is None else 0.0


def reference_problem(ground_truth: Any, extra_info: Mapping[str, Any] | None = None) -> str | None:
    """Why this reference answer cannot be graded against; None when it can."""
    return problem_of_any(ground_truth, _problem)


def _problem(reference: Any) -> str | None:
    if parse_gold(reference) is not None:
        return None
    return f"ground_truth {str(reference)[:60]!r} is not a number"


def parse_gold(ground_truth: Any) -> Number | None:
    """The number of a gold: `72`, `1,080`, `\\boxed{72}`, or a whole solution with `#### 72`."""
    text = str(ground_truth).rpartition("####")[2]
    return parse_number(gold_box(text) or text, with_unit=True)
