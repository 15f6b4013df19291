"""Repeated prompts, and rows held out for evaluation."""

from __future__ import annotations

import random

import pytest

from rlcli.data.readers import Row
from rlcli.data.sets import hold_out, overlap_notes, prompt_key, repeat_notes, val_name


def rows(count: int, *, copies: int = 1) -> list[Row]:
    return [
        Row(id=f"a.jsonl:{number + 1}", prompt=f"{number % (count // copies)}+1?", ground_truth="1")
        for number in range(count)
    ]


@pytest.mark.parametrize(
    ("count", "held"),
    [(16, 0), (199, 0), (200, 10), (400, 20), (3999, 199), (4000, 200), (9000, 200)],
)
def test_5_percent_and_at_most_200_are_held_out_of_200_rows_and_more(count: int, held: int) -> None:
    split = hold_out(rows(count))
    assert len(split.held_out) == held
    assert len(split.train) == count - held


def test_the_split_does_not_depend_on_the_order_of_the_rows() -> None:
    some = rows(400)
    mixed = random.Random(0).sample(some, len(some))
    assert {r.id for r in hold_out(some).held_out} == {r.id for r in hold_out(mixed).held_out}


def test_new_rows_leave_most_held_out_prompts_held_out() -> None:
    before = {r.id for r in hold_out(rows(400)).held_out}
    after = {r.id for r in hold_out(rows(440)).held_out}
    assert len(before & after) >= 15


def test_copies_of_a_prompt_stay_on_one_side_and_are_evaluated_once() -> None:
    split = hold_out(rows(1000, copies=5))
    assert len(split.held_out) == 10
    assert len(split.train) == 1000 - 5 * 10
    assert not {prompt_key(r) for r in split.train} & {prompt_key(r) for r in split.held_out}


def test_a_few_prompts_repeated_often_are_not_held_out() -> None:
    split = hold_out(rows(300, copies=100))
    assert (len(split.train), split.held_out) == (300, [])


def test_equal_rows_and_different_answers_are_counted_with_their_first_lines() -> None:
    message = ({"role": "user", "content": "1+1?"},)
    some = [
        Row(id="a:1", prompt="1+1?", ground_truth="2"),
        Row(id="a:2", prompt=message, ground_truth="2"),
        Row(id="a:3", prompt="1+1? ", ground_truth="2"),
        Row(id="a:4", prompt="1+1?", ground_truth="3"),
        Row(id="a:5", prompt="1+2?", ground_truth={"b": 1, "a": 2}),
        Row(id="a:6", prompt="1+2?", ground_truth={"a": 2, "b": 1}),
    ]
    assert repeat_notes(some) == [
        "3 of 6 rows repeat an earlier row (first: a:2 is equal to a:1)",
        "1 of 2 prompts have different reference answers (first: a:1 has '2', a:4 has '3')",
    ]
    assert repeat_notes(rows(50)) == []


def test_validation_prompts_that_are_trained_on_are_reported() -> None:
    train = rows(5)
    val = [Row(id="b:1", prompt="new"), Row(id="b:2", prompt="3+1?", ground_truth="other")]
    (note,) = overlap_notes(train, val)
    assert note.startswith("1 of 2 validation prompts")
    assert "b:2 is a.jsonl:4" in note
    assert overlap_notes(train, val[:1]) == []


def test_validation_data_has_a_name() -> None:
    assert val_name(["data/a.jsonl"], ["train:5%"]) == "5 % of a.jsonl"
    assert val_name(["a"], ["x/test.parquet", "y.jsonl"]) == "test.parquet and 1 more"
    assert val_name(["a"], ["builtin:sums_val"]) == "sums_val"
