"""Mathematical answers, equal and unequal."""

from __future__ import annotations

import time

import pytest

from rlcli.rewards.rules.math import compute_score, reference_problem


def score(response: str, gold: str) -> float:
    return compute_score("lighteval/MATH", response, gold)


@pytest.mark.parametrize(
    ("response", "gold"),
    [
        (r"\boxed{42}", r"\boxed{42}"),
        (r"\boxed{42}", "So $x = \\boxed{42}$."),
        (r"$$\boxed{ 42 }$$", "42"),
        (r"\fbox{42}", "42"),
        ("**Answer:** 42", "42"),
        ("答案是42。", "42"),
        (r"答案是$\frac12$。", r"\frac{1}{2}"),
        ("#### 42", "42"),
        ("The answer is 42 apples in total.", "42"),
        ("So all in all we get 42", "42"),
        ("Therefore $x = 42$, as was to be shown.", "42"),
        (r"Answer: \(\dfrac{3}{4}\)", r"\frac34"),
        ("Answer:\n$$\\frac{3}{4}$$", r"\frac34"),
        (r"\boxed{1,234}", "1234"),
        (r"\boxed{1234}", r"1{,}234"),
        (r"\boxed{\$18.00}", "18"),
        (r"\boxed{42.}", "42"),
        (r"\boxed{42.0}", "42"),
        (r"\boxed{50\%}", r"50\%"),
        (r"\boxed{50%}", r"50\%"),
        (r"\boxed{50}", r"50\%"),
        (r"\boxed{0.5}", r"50\%"),
        (r"\boxed{−3}", "-3"),
        (r"\boxed{-3}", "−3"),
        (r"\boxed{41}. Correction: it is \boxed{42}", "42"),
        ("\\boxed{42}\n\nIf you need 3 more examples, such as \\(x=7\\), just ask!", "42"),
        (r"\boxed{(x+1)^2}", "x^2+2x+1"),
        (r"\boxed{\sqrt{18}}", r"3\sqrt{2}"),
        (r"\boxed{\frac{1}{2}}", "0.5"),
        (r"\boxed{1/3}", "0.333333"),
        (r"\boxed{2\frac{1}{2}}", r"\frac{5}{2}"),
        (r"\boxed{tuesday}", r"\text{Tuesday}"),
        (r"\boxed{C}", r"\text{(C)}"),
        (r"\boxed{x=5}", "5"),
        (r"\boxed{5}", "x=5"),
        (r"\boxed{5\text{ cm}}", "5"),
        (r"\boxed{90}", r"90^\circ"),
        ("The answer is 3√2.", r"3\sqrt{2}"),
        (r"\boxed{√(x+1)}", r"\sqrt{x+1}"),
        (r"\boxed{\frac{d}{d+1}}", r"1-\frac{1}{d+1}"),
        (r"\boxed{2,1}", "1,2"),
        (r"\boxed{1} and \boxed{2}", "1,2"),
        (r"\boxed{x+11} or \boxed{11+x}", "11+x"),
        (r"<think>\boxed{1}</think> \boxed{2}", "2"),
    ],
)
def test_equal_answers_count(response: str, gold: str) -> None:
    assert score(response, gold) == 1.0


@pytest.mark.parametrize(
    ("response", "gold"),
    [
        (r"\boxed{41} or \boxed{42}", "42"),
        (r"\boxed{42} \boxed{41}", "42"),
        (r"\boxed{42}, \boxed{41}", "41"),
        (r"\boxed{42}. Correction: it is \boxed{41}", "42"),
        (r"\boxed{[1,2]}", "(1,2)"),
        (r"\boxed{B}", r"\text{(C)}"),
        (r"\boxed{\text{no}}", r"\text{yes}"),
        (r"\boxed{4}", "4t"),
        (r"\boxed{\frac{d}{dx}x^2}", "2x"),
        (r"\boxed{\dfrac{\mathrm{d}}{\mathrm{d}x} x^2}", "2x"),
        (r"\boxed{\frac{\partial}{\partial x} x^2}", "2x"),
        (r"\boxed{50\%}", "0.05"),
        (r"\boxed{3}", "4"),
        (r"\boxed{", "4"),
        (r"\boxed{}", "4"),
        (r"\boxed{" + "x" * 5000 + "}", "4"),
        ("No idea.", "4"),
        ("", "4"),
    ],
)
def test_hedged_other_and_missing_answers_get_nothing(response: str, gold: str) -> None:
    assert score(response, gold) == 0.0


def test_a_gold_that_cannot_be_read_is_found() -> None:
    assert [reference_problem(gold) for gold in ("42", r"\text{Tuesday}", "(1,2)", "x=5")] == [
        None
    ] * 4
    assert reference_problem("") == "ground_truth is empty"
    assert "cannot be read" in str(reference_problem(r"\frac{1"))


@pytest.mark.parametrize(
    "answer",
    [
        "9^{9^{9^{9^9}}}", "9**9**9", "9!!!", "x^{9999}", "(x+1)^{999}", "(a+b+c+d)^{300}",
        "99999!x", "9" * 900 + "x", "(" * 400 + "x" + ")" * 400, r"\frac{1}{" * 90 + "x" + "}" * 90,
        "+".join(f"x^{{{n}}}" for n in range(150)), r"\cup".join(f"({n},{n})" for n in range(80)),
        r"\sum_{i=1}^{99999999} ix", r"\int_0^1 e^{x^2} \sin x \, dx",
    ],
)  # fmt: skip
def test_an_answer_that_would_take_minutes_is_none(answer: str) -> None:
    begun = time.process_time()
    assert score(rf"\boxed{{{answer}}}", "7") == 0.0
    assert score(rf"\boxed{{{answer}}}", "x+1") == 0.0
    assert time.process_time() - begun < 20.0


def test_tiny_numbers_are_not_zero() -> None:
    assert score(r"\boxed{0}", r"\frac{1}{2004!}") == 0.0
    assert score(r"\boxed{0\cdot x}", r"\frac{1}{2004!}") == 0.0
    assert score(r"\boxed{0}", r"\frac{\pi}{10^{20}}") == 0.0


def test_an_equation_in_two_variables_is_more_than_its_right_side() -> None:
    assert score(r"\boxed{13}", "x^2 + y^2 = 13") == 0.0
    assert score(r"\boxed{y^2 + x^2 = 13}", "x^2 + y^2 = 13") == 1.0
    assert score(r"\boxed{m + n = 13}", "13") == 1.0
