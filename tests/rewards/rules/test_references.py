"""Reference answers that are lists or objects: any of them counts, or data check names them."""

from __future__ import annotations

from typing import Any

import pytest

from rlcli.rewards.rules import load_rule, reference_problem


@pytest.mark.parametrize(
    ("rule", "gold", "right", "wrong"),
    [
        ("math", ["12 cm", "12"], r"\boxed{12}", r"\boxed{13}"),
        ("math", '["x+1", "x^2"]', r"\boxed{x^2}", r"\boxed{x}"),
        ("math", {"answer": "3"}, r"\boxed{3}", r"\boxed{4}"),
        ("math", "[1, 2]", r"\boxed{[1,2]}", r"\boxed{1}"),
        ("math", "{1, 2}", r"\boxed{1, 2}", r"\boxed{1}"),
        ("gsm8k", ["7", 8], "#### 8", "#### 9"),
        ("gsm8k", {"target": 7}, "#### 7", "#### 8"),
        ("math_reasoning", ["7", r"\frac{x}{2}"], r"\boxed{x/2}", r"\boxed{x/3}"),
        ("exact", ["a", "b"], "b", "c"),
        ("exact", '["a"]', '["a"]', "a"),
        ("choice", ["B", "(B)"], "The answer is B.", "The answer is C."),
    ],
)
def test_any_of_several_references_counts(rule: str, gold: Any, right: str, wrong: str) -> None:
    score = load_rule(rule).compute_score
    assert reference_problem(rule, gold) is None
    assert (score("", right, gold), score("", wrong, gold)) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("rule", "gold"),
    [
        ("math", {"numbers": [1, 2], "target": 3}),
        ("math", '{"answer": "1", "unit": "cm"}'),
        ("math", []),
        ("math", [["1"], ["2"]]),
        ("gsm8k", {}),
        ("gsm8k", ["7", "seven"]),
        ("exact", {"a": "b"}),
        ("math", ["1", None]),
        ("choice", ["A", "C"]),
        ("math_reasoning", {"x": "1"}),
        ("math", ["1", ""]),
    ],
)
def test_other_shapes_are_found_by_data_check(rule: str, gold: Any) -> None:
    assert reference_problem(rule, gold) is not None


def test_a_choice_may_be_named_by_its_text() -> None:
    assert reference_problem("choice", "Paris", {"choices": ["Rome", "Paris"]}) is None
    assert reference_problem("choice", "Paris") is not None
