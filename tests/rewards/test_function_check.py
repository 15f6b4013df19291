"""What a user's function is asked before a weight is loaded, and what is said of its answers."""

from __future__ import annotations

from typing import Any

import pytest

from rlcli.data.readers import Row
from rlcli.errors import RewardError
from rlcli.rewards.function_check import check_function


def rows(*golds: Any, sources: tuple[str, ...] = ("sums",), **columns: Any) -> list[Row]:
    return [
        Row(
            id=f"a.jsonl:{i + 1}",
            prompt="2 + 2?",
            ground_truth=gold,
            data_source=sources[i % len(sources)],
            columns=columns,
        )
        for i, gold in enumerate(golds)
    ]


HEAD = "def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n    "


@pytest.fixture
def notes(user_file: Any) -> Any:
    """notes(body or source, rows, **how) -> the notes."""

    def check(body: str, some: list[Row], **how: Any) -> list[str]:
        source = body if "def " in body else HEAD + body + "\n"
        return check_function(user_file(source), some, **how)

    return check


@pytest.mark.parametrize(
    "body",
    [
        "return solution_str.strip() == ground_truth",
        "return {'score': float(solution_str == ground_truth)}",
        "return {'acc': solution_str == ground_truth}",
        "return -abs(float(solution_str) - float(ground_truth))",
    ],
)
def test_nothing_is_said_of_a_function_that_tells_right_from_wrong(notes: Any, body: str) -> None:
    assert notes(body, rows("4", "5")) == []


@pytest.mark.parametrize(
    ("body", "golds", "cause"),
    [
        ("return int(solution_str) == ground_truth", ("4", "5"), "ground_truth is text"),
        ("return float(solution_str) == ground_truth", ("4.5", "5"), "ground_truth is text"),
        ("return solution_str == ground_truth", (4, 5), "ground_truth is a number"),
        (
            "return '\\\\boxed{' + ground_truth + '}' in solution_str",
            ("4", "5"),
            r"only in the form \boxed{4}",
        ),
        (
            "return f'<answer>{ground_truth}</answer>' in solution_str",
            ("4", "5"),
            "<answer>4</answer>",
        ),
        ("return 0.5", ("4", "5"), "Look whether it reads answers"),
    ],
)
def test_why_a_right_answer_gets_no_more_than_a_wrong_one(
    notes: Any, body: str, golds: tuple[Any, ...], cause: str
) -> None:
    (note,) = notes(body, rows(*golds))
    assert cause in note


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("return None", "returned NoneType None"),
        ("return {'acc': 1.0, 'form': 0.5}", "reward.weights={acc: 1.0, form: 1.0}"),
        ("return {'pred': solution_str}", "a dict without numbers"),
        ("return int(solution_str) + 'a'", "TypeError"),
        ("import os; os._exit(3)", "exited with status 3"),
        ("while True: pass", "took longer than 0.3 s"),
        ("import time; time.sleep(60)", "took longer than 0.3 s"),
        ("def compute_score(completions, solution): return [1.0]", "asks for solution"),
        ("def compute_score(completions, **_): return [1.0, 1.0]", "2 scores for 1 response"),
    ],
)
def test_a_function_that_scores_nothing_is_refused(notes: Any, body: str, error: str) -> None:
    with pytest.raises(RewardError) as caught:
        notes(body, rows("4", "5"), timeout_s=0.3 if "longer" in error else 60.0)
    assert error in str(caught.value)


def test_weights_are_asked_for_as_in_the_run(notes: Any) -> None:
    body = "return {'acc': solution_str == ground_truth, 'form': 0.5}"
    assert notes(body, rows("4", "5"), weights={"acc": 1.0, "form": 0.2}) == []
    with pytest.raises(RewardError, match="names length"):
        notes(body, rows("4", "5"), weights={"acc": 1.0, "length": 0.2})


def test_an_answer_left_unscored_is_named_with_its_row(notes: Any) -> None:
    body = "return None if ground_truth == '5' else 1.0 * (solution_str == '4')"
    (note,) = notes(body, rows("4", "5"))
    assert "2 of 4 answers tried unscored, for a.jsonl:2" in note


def test_every_data_source_is_tried(notes: Any) -> None:
    body = "return {'a': 1.0}[data_source] * (solution_str == ground_truth)"
    (note,) = notes(body, rows("4", "5", sources=("a", "b")))
    assert "a.jsonl:2: KeyError: 'b'" in note


def test_a_function_that_abstains_from_its_first_rows_is_asked_of_more(notes: Any) -> None:
    body = "return None if len(ground_truth) < 2 else float(solution_str == ground_truth)"
    (note,) = notes(body, rows("4", "5", "6", "42"))
    assert "5 of 6 answers tried unscored" in note


def test_columns_and_lists_are_announced(notes: Any) -> None:
    source = "def compute_score(completions, level, **_): return [len(c) for c in completions]"
    told = " ".join(notes(source, rows("4", "55", level=3)))
    assert "columns of each row: level." in told
    assert "takes lists (TRL): it is called with one response at a time" in told


def test_data_without_ground_truths_is_tried_too(notes: Any) -> None:
    assert notes("return len(solution_str)", rows(None, None)) == []
    with pytest.raises(RewardError, match="TypeError"):
        notes("return len(ground_truth)", rows(None, None))
