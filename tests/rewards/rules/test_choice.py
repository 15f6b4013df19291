"""Multiple-choice answers, graded by their letter."""

from __future__ import annotations

from typing import Any

import pytest

from rlcli.rewards.rules.choice import compute_score, final_choice, parse_gold, reference_problem
from rlcli.rewards.rules.undecided import InvalidReference, Undecided

CAPITALS = ["Berlin", "Paris", "Rome", "Madrid"]


@pytest.mark.parametrize(
    "response",
    [
        "B",
        "b)",
        "(B)",
        "B.",
        "**B**",
        "B. Paris",
        "(B) Paris",
        r"So it must be \boxed{B}.",
        r"\boxed{\text{(B)}}",
        r"$\boxed{\textbf{(B)}\ Paris}$",
        "The answer is B.",
        "The correct answer is (B) Paris, because A is in Germany.",
        "Answer: B",
        "**Answer:** B",
        "Final answer: **B**. I hope this helps!",
        "The best option is B.",
        "Option B is correct.",
        "A is in Germany.\nC is in Italy.\nThe answer is option B",
        "<answer>B</answer>",
        "#### B",
        "答案是B。",
        "故选B。",
        "本题选B。",
        "综上，选项B正确。",
        "【答案】B",
        "A在德国，C在意大利。\n选项A错误。\n【答案】B\n【解析】略",
        "Therefore, option B is the correct answer.",
        "答案：（B）",
        "\uff22",
        "<think>First I took A. The answer is A.</think>The answer is B.",
        "The answer is A. Wait, no: the answer is B.",
        "I compare them all.\n\nB",
    ],
)
def test_a_right_letter_is_found_however_it_is_written(response: str) -> None:
    assert compute_score("choice", response, "B") == 1.0


@pytest.mark.parametrize(
    "response",
    [
        "",
        "A or B",
        "The answer is A or B.",
        r"\boxed{A} or \boxed{B}",
        r"\boxed{A, B}",
        "Both A and B",
        "A, B, C, D",
        "A\nB\nC",
        "I do not know.",
        "A bee would know.",
        "<think>The answer is B.",
        "Because of this.",
        "The answer is a bee.",
        "B不正确",
        "选项B错误。",
    ],
)
def test_no_letter_or_several_is_undecided(response: str) -> None:
    score = compute_score("choice", response, "B")
    assert isinstance(score, Undecided)
    assert score == 0.0


@pytest.mark.parametrize("response", ["A", "The answer is C.", r"\boxed{D}", "B is wrong.\nA"])
def test_another_letter_is_wrong(response: str) -> None:
    score = compute_score("choice", response, "B")
    assert score == 0.0
    assert not isinstance(score, Undecided)


@pytest.mark.parametrize(
    ("gold", "letter"),
    [("B", "B"), ("b", "B"), ("(B)", "B"), ("B.", "B"), ("B. Paris", "B"), (0, "A"), (3, "D")],
)
def test_golds_are_letters_or_places_from_0(gold: Any, letter: str) -> None:
    assert parse_gold(gold) == letter
    assert reference_problem(gold) is None


@pytest.mark.parametrize("gold", ["", "Paris", "A or B", True, None, 26, -1, "42"])
def test_a_gold_that_is_no_choice_is_told(gold: Any) -> None:
    assert "is not a choice" in str(reference_problem(gold))
    with pytest.raises(InvalidReference):
        compute_score("choice", "B", gold)


@pytest.mark.parametrize("choices", [CAPITALS, {"text": CAPITALS, "label": ["A", "B", "C", "D"]}])
def test_the_text_of_a_choice_stands_for_its_letter(choices: Any) -> None:
    extra = {"choices": choices}
    assert compute_score("choice", "The answer is Paris.", "B", extra) == 1.0
    assert compute_score("choice", "Rome", "B", extra) == 0.0
    assert compute_score("choice", "B", "Paris", extra) == 1.0
    assert final_choice("It is Paris, I think") is None
