"""What a rule leaves open: no answer, several, or a gold that cannot be read."""

from __future__ import annotations

from typing import Any

import pytest

from rlcli.rewards.rules import load_rule
from rlcli.rewards.rules.undecided import InvalidReference, Undecided


def score(rule: str, response: str, gold: Any) -> Any:
    return load_rule(rule).compute_score("", response, gold)


@pytest.mark.parametrize(
    ("rule", "response", "gold"),
    [
        ("gsm8k", "I do not know.", "42"),
        ("gsm8k", "", "42"),
        ("gsm8k", "The answer is 42 or 43.", "42"),
        ("math", "I do not know.", "42"),
        ("math", r"\boxed{1} or \boxed{2}", "1"),
        ("math_reasoning", "I do not know.", "42"),
        ("math_reasoning", "No idea at all, sorry.", r"\frac{x}{2}"),
    ],
)
def test_a_response_without_one_answer_scores_0_and_is_left_open(
    rule: str, response: str, gold: str
) -> None:
    found = score(rule, response, gold)
    assert found == 0.0
    assert isinstance(found, Undecided)


@pytest.mark.parametrize(
    ("rule", "response", "gold", "value"),
    [
        ("gsm8k", "The answer is 42.", "42", 1.0),
        ("gsm8k", "The answer is 43.", "42", 0.0),
        ("math", r"\boxed{1} or \boxed{2}", "1, 2", 1.0),
        ("math", r"\boxed{\frac12} or \boxed{0.5}", r"\frac{1}{2}", 1.0),
        ("math", r"\boxed{2}", "1", 0.0),
        ("exact", "", "a", 0.0),
    ],
)
def test_an_answer_that_was_read_is_decided(
    rule: str, response: str, gold: str, value: float
) -> None:
    found = score(rule, response, gold)
    assert found == value
    assert not isinstance(found, Undecided)


@pytest.mark.parametrize(
    ("rule", "gold"),
    [("gsm8k", "many"), ("gsm8k", None), ("math", r"\frac{1"), ("math", None), ("math", " "),
     ("exact", ""), ("exact", None), ("exact", [["a"]]), ("gsm8k", ["many"]),
     ("math", []), ("math", {"answer": "1", "unit": "cm"}), ("choice", ["A", "B"])],
)  # fmt: skip
def test_a_gold_that_cannot_be_read_scores_nothing(rule: str, gold: Any) -> None:
    with pytest.raises(InvalidReference):
        score(rule, "The answer is 42.", gold)
