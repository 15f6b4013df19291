"""Answers that are read to their end, and answers of which a part would be lost."""

from __future__ import annotations

import json
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest

from rlcli.data.boxed_answers import gold_box
from rlcli.rewards.rules import load_rule, math, text_only
from rlcli.rewards.rules.reading import read
from rlcli.rewards.rules.undecided import InvalidReference, Undecided


def score(answer: str, gold: Any) -> float:
    return math.compute_score("", rf"\boxed{{{answer}}}", gold)


@pytest.fixture(scope="session")
def cases() -> Path:
    folder = Path(__file__).resolve().parents[4] / "shared" / "cases"
    if not folder.is_dir():
        pytest.skip("the lists of cases are not here: put them into ../shared/cases")
    return folder


@pytest.mark.parametrize(
    "name", ["math/pairs_wrong", "math/pairs_right", "graders/sentences", "graders/final_answers"]
)
def test_every_listed_pair_is_graded_as_its_label_says(cases: Path, name: str) -> None:
    failures = []
    for line in (cases / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        rule = load_rule(row["rule"])
        try:
            found = rule.compute_score("", row["answer"], row["gold"], row.get("extra_info"))
        except InvalidReference:
            found = 0.0
        is_paid = found == 1.0
        if is_paid != row["equal"] and not isinstance(found, Undecided):
            failures.append(row)
    assert failures == []


LOST = [
    ("a \\to b", "a \\to c"),
    ("x \\in A \\cup B", "x \\in A \\cap B"),
    ("p \\Rightarrow q", "q \\Rightarrow p"),
    ("\\lnot p", "p"),
    ("\\forall x", "\\exists x"),
    ("2 \\uparrow\\uparrow 3", "2 \\uparrow 3"),
    ("1 + 2 + \\cdots + n", "1 + 3 + \\cdots + n"),
    ("1, 4, 9, \\dotsc", "1, 4, 8, \\dotsc"),
    ("5\\text{ ft }3\\text{ in}", "3\\text{ ft }5\\text{ in}"),
    ("20\\text{ m north}", "20\\text{ m south}"),
    ("3/4/2021", "4/3/2021"),
    ("10-20", "15-25"),
    ("2R - r", "2r - R"),
    ("R - r", "r - R"),
    ("f'(x)", "f''(x)"),
    ("7!!", "7!"),
    ("\\frac{df}{dx} = 1", "\\frac{df}{dx} = 2"),
    ("2:3:4", "2:4:3"),
    ("\\phantom{1}2", "2"),
    ("n \\text{ is even}", "n \\text{ is odd}"),
    ("\\mathcal{A}", "\\mathcal{B}"),
    ("\\widehat{AB}", "\\widehat{CD}"),
    ("\\underline{3}x", "\\overline{3}x"),
    ("east", "seat"),
    ("x^{(3)}_{k}", "x^{(2)}_{k}"),
    ("3\\mathrm{H_2O}", "2\\mathrm{H_2O}"),
    ("\\star 2", "\\circ 2"),
]


@pytest.mark.parametrize(("gold", "answer"), LOST)
def test_a_difference_in_a_part_outside_the_grammar_is_never_paid(gold: str, answer: str) -> None:
    for one, other in ((gold, answer), (answer, gold)):
        assert score(other, one) != 1.0
        assert score(one, one) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "1, 2, \\ldots, n",
        "5 \\pmod 7",
        "10\\text{ km east}",
        "2024-01-02",
        "y'' = y",
        "\\frac{dy}{dx}",
        "\\text{red}",
        "a \\mid b",
        "11_2",
        "x = ",
        "\\frac{1}{0}",
    ],
)
def test_what_is_not_understood_is_not_read_at_all(text: str) -> None:
    assert read(text) is None


def test_texts_that_differ_are_left_open_if_one_was_not_read() -> None:
    assert isinstance(score("5 \\pmod{9}", "5 \\pmod 7"), Undecided)
    assert score("5 \\pmod{7}", "5 \\pmod 7") == 1.0
    assert not isinstance(score("x+2", "x+1"), Undecided)
    assert isinstance(score("11 + 1", "12"), Undecided)
    assert not isinstance(score("11 + 2", "12"), Undecided)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("2-\\mathrm{i}", "2-i"),
        ("\\operatorname{tg} x", "\\tan x"),
        ("\\operatorname{arcsin} x", "\\arcsin x"),
        ("\\frac{1 \\pm \\sqrt 5}{2}", "\\frac{1+\\sqrt5}{2}, \\frac{1-\\sqrt5}{2}"),
        ("x \\le -1 \\text{ or } x > 4", "(-\\infty,-1] \\cup (4,\\infty)"),
        ("(B)\\ 7", "B"),
        ("\\text{(B) } 7", "7"),
        ("\\varnothing", "\\{\\}"),
        ("\\cfrac{x}{2}", "x/2"),
        ("yes", "\\text{Yes}"),
        ("4\\pi\\text{ cm}^2", "4\\pi"),
        ("4\\pi", "4\\pi\\ \\mathrm{cm}^2"),
        ("1.5", "1,5"),
        ("\\infty", "infinity"),
    ],
)
def test_other_spellings_of_one_value_are_equal(gold: str, answer: str) -> None:
    assert score(answer, gold) == 1.0


def test_units_must_agree_where_both_have_one() -> None:
    assert score("4\\pi\\text{ m}^2", "4\\pi\\text{ cm}^2") == 0.0
    assert score("\\$20", "20^\\circ") == 0.0
    assert isinstance(score("42\\text{ kids}", "42\\text{ students}"), Undecided)
    assert score("42\\text{ students in total}", "42\\text{ students}") == 1.0


def test_data_check_can_name_answers_that_are_compared_as_text() -> None:
    assert text_only("math", "1, 2, \\ldots, n") == "1, 2, \\ldots, n"
    assert [
        text_only("math", gold) for gold in ("x+1", "\\text{red}", "42 km", "2516_8", "(C) 12")
    ] == [None] * 5
    assert text_only("gsm8k", "1, 2, \\ldots, n") is None


TAILS = [
    " \\pmod{3}",
    ", \\ldots",
    "\\text{ if } n \\text{ is odd}",
    " + 1",
    "i",
    "\\sqrt{2}",
    "x",
    ", 7777",
    " \\text{ or } 7777",
    " \\cdot 3",
    "/3",
    " \\pm 1",
    " \\mid 3",
    " to 9999",
]
HEADS = ["-", "2", "\\frac{1}{2}", "7777, ", "\\text{not }", "\\ne ", "> ", "\\log ", "x "]


@pytest.mark.parametrize("every", [90, pytest.param(4, marks=pytest.mark.nightly)])
def test_a_changed_answer_of_math_is_wrong_and_a_dressed_one_right(
    shared_data: Path, every: int
) -> None:
    lines = (shared_data / "math_train.jsonl").read_text(encoding="utf-8").splitlines()[::every]
    golds = {gold_box(json.loads(line)["solution"]) for line in lines} - {"0", "1"}
    chance = random.Random(0)
    for gold in sorted(golds):
        changed = [gold + tail for tail in TAILS] + [head + gold for head in HEADS]
        digits = list(re.finditer(r"[1-9]", gold))
        if digits:
            spot = chance.choice(digits)
            changed.append(gold[: spot.start()] + str(10 - int(spot[0])) * 2 + gold[spot.end() :])
        assert [text for text in changed if score(text, gold) == 1.0] == []
        for dressed in (
            f" {gold} ",
            f"${gold}$",
            f"{gold}.",
            f"\\displaystyle {gold}",
            f"\\,{gold}",
        ):
            assert score(dressed, gold) == 1.0, gold
        for sentence in (
            f"So the answer is ${gold}$.",
            f"**Answer:** ${gold}$\n\nI hope this helps!",
        ):
            assert math.compute_score("", sentence, gold) == 1.0, gold


@pytest.mark.parametrize(
    "piece", ["{", "\\text{a", "1 - ", "x_", "\\frac", "| ", "a ", "(", "If you ", "is 3 "]
)
def test_long_answers_take_no_longer(piece: str) -> None:
    begun = time.process_time()
    for length in (900, 20_000):
        score(piece * (length // len(piece)), "x+1")
        math.compute_score("", piece * (length // len(piece)) + " 3", "3")
    assert time.process_time() - begun < 5.0
