"""Answers whose meaning hangs on a word or a power behind the number."""

from __future__ import annotations

import pytest

from rlcli.rewards.rules import gsm8k, math
from rlcli.rewards.rules.undecided import Undecided


def score(gold: str, answer: str) -> float:
    return math.compute_score("math", answer, gold)


@pytest.mark.parametrize(
    "answer",
    [
        "The answer is minus 5.",
        "So the answer is negative 5.",
        "答案是负5。",
        "答えはマイナス5です。",
        "정답은 마이너스 5입니다.",
        "Die Antwort ist minus 5.",
        "Ответ: минус 5.",
    ],
)
def test_a_sign_in_words_is_read(answer: str) -> None:
    for rule in (math, gsm8k):
        assert rule.compute_score("math", answer, "-5") == 1.0
        assert rule.compute_score("math", answer, "5") == 0.0


def test_a_subtraction_in_words_is_no_negative_number() -> None:
    assert score("-3", "The result is 20 minus 3.") != 1.0
    assert score("3", "The result is 20 minus 3.") != 1.0
    assert score("-5", "答案是正负5。") != 1.0


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (r"5\text{ cm}", r"5\text{ cm}^2"),
        (r"12\text{ cm}^2", r"12\text{ cm}^3"),
        (r"12\text{ cm}^2", r"12\text{ cm}"),
        (r"5\sqrt2\text{ cm}^2", r"5\sqrt2\text{ cm}"),
        ("5 m/s", "5 m/s^2"),
        ("CO_2", "CO"),
        ("H_2", "H"),
        ("A^T", "A"),
        ("(AB)^{T}", "AB"),
    ],
)
def test_powers_and_indices_count(gold: str, answer: str) -> None:
    assert score(gold, rf"\boxed{{{answer}}}") != 1.0
    assert score(answer, rf"\boxed{{{gold}}}") != 1.0
    assert score(gold, rf"\boxed{{{gold}}}") == 1.0


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (r"12\text{ cm}^2", r"12\text{ square centimeters}"),
        ("12 sq ft", r"12\text{ ft}^2"),
        ("12", r"12\text{ cm}^2"),
        (r"12\text{ cm}^{2}", "12"),
        (r"12\text{ cm²}", r"12\,\mathrm{cm}^2"),
        ("FF_{16}", "FF_{16}"),
    ],
)
def test_ways_to_write_an_area(gold: str, answer: str) -> None:
    assert score(gold, rf"\boxed{{{answer}}}") == 1.0


def test_minutes_are_no_minimum() -> None:
    gold, answer = r"3\text{ hours }20\text{ minutes}", r"\boxed{3\text{ h }20\text{ min}}"
    assert isinstance(score(gold, answer), Undecided)
    assert score(r"\min(a,b)", r"\boxed{\text{min}(b,a)}") == 1.0


@pytest.mark.parametrize("text", [r"\[ 42 \]", r"\(42\)", "$$x = 42$$", r"\[x=42\]"])
def test_a_response_that_is_one_formula(text: str) -> None:
    assert score("42", text) == 1.0


@pytest.mark.parametrize(
    "closing",
    [
        "Happy to explain step 2 in more detail!",
        "Shall I go through step 3?",
        "Good luck with your 3 exams!",
        "Thanks for asking question 7!",
        "需要我解释第2步吗？",
        "ご不明な点が2つ以上あればお知らせください。",
        "2번 문제도 도와드릴까요?",
        "Если есть ещё 2 вопроса, спрашивайте!",
    ],
)
def test_offers_behind_the_answer(closing: str) -> None:
    for rule in (math, gsm8k):
        assert rule.compute_score("math", f"So the total is 42.\n\n{closing}", "42") == 1.0
