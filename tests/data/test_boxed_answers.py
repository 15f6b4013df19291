"""What counts as the answer when a text has boxes."""

from __future__ import annotations

import time

import pytest

from rlcli.data.boxed_answers import boxes, final_boxes, gold_box


@pytest.mark.parametrize(
    ("text", "contents"),
    [
        (r"$\boxed{\frac{1}{\sqrt{2}}}$", [r"\frac{1}{\sqrt{2}}"]),
        (r"\fbox{7} and \boxed 8.", ["7", "8"]),
        (r"\boxed{\{1, 2\}}", [r"\{1, 2\}"]),
        (r"\boxed{unclosed", []),
        (r"\boxed{}", []),
        (r"\boxed{a \boxed{b}}", [r"a \boxed{b}"]),
    ],
)
def test_boxes_are_read_with_balanced_braces(text: str, contents: list[str]) -> None:
    assert [box.content for box in boxes(text)] == contents


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        (r"\boxed{41}. That was wrong, so \boxed{42}", ["42"]),
        (r"\boxed{41} or \boxed{42}", ["41", "42"]),
        (r"$x = \boxed{41}$ and $x = \boxed{42}$", ["41", "42"]),
        (r"\boxed{41}, \boxed{42}", ["41", "42"]),
        (r"\boxed{41}或者\boxed{42}", ["41", "42"]),
        (r"\boxed{41}不对,应该是\boxed{42}", ["42"]),
        (r"\boxed{42} \boxed{42}", ["42"]),
        ("none", []),
    ],
)
def test_the_last_box_counts_and_boxes_joined_by_or_count_together(
    text: str, answers: list[str]
) -> None:
    assert final_boxes(text) == answers


def test_a_gold_takes_boxes_joined_by_and_but_one_of_those_joined_by_or() -> None:
    assert gold_box(r"$\boxed{-2}$ and $\boxed{1}$.") == "-2, 1"
    assert gold_box(r"$\boxed{x+1}$ or $\boxed{1+x}$") == "1+x"
    assert gold_box(r"$=\boxed{\frac{25}{13}} = \boxed{1\frac{12}{13}}$") == r"1\frac{12}{13}"
    assert gold_box("no box") == ""


def test_a_text_of_nothing_but_open_boxes_is_read_quickly() -> None:
    """Linear: 0.06 s. Quadratic: minutes."""
    begun = time.process_time()
    assert final_boxes("\\boxed{" * 100_000) == []
    assert time.process_time() - begun < 20.0
