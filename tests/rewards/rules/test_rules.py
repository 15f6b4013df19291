"""Which rule grades which data source, and the rules that need no mathematics."""

from __future__ import annotations

import time

import pytest

from rlcli.errors import RewardError
from rlcli.rewards.rules import (
    RULES,
    RUNS_CODE,
    choose,
    exact,
    length,
    load_rule,
    reference_problem,
    rule_name,
)
from rlcli.rewards.rules import format as form


@pytest.mark.parametrize(
    ("data_source", "rule"),
    [
        ("gsm8k", "gsm8k"),
        ("openai/gsm8k", "gsm8k"),
        ("math", "math"),
        ("lighteval/MATH", "math"),
        ("DigitalLearningGmbH/MATH-lighteval", "math"),
        ("HuggingFaceH4/MATH-500", "math"),
        ("aime2024", "math"),
        ("math_reasoning", "math_reasoning"),
        ("openai/openai_humaneval", "code"),
        ("google-research-datasets/MBPP", "code"),
        ("sums", "exact"),
        ("exact", "exact"),
        ("format", "format"),
        ("length", "length"),
    ],
)
def test_every_data_source_has_its_rule(data_source: str, rule: str) -> None:
    assert rule_name(data_source) == rule
    assert choose(data_source) is load_rule(rule).compute_score


def test_an_unknown_data_source_gets_the_nearest_and_the_cure() -> None:
    with pytest.raises(RewardError) as caught:
        choose("openai/gsm8")
    assert "'openai/gsm8' (nearest: openai/gsm8k" in str(caught.value)
    assert "reward.fn" in str(caught.value)
    with pytest.raises(RewardError, match="a row without data_source"):
        choose("")


@pytest.mark.parametrize("name", RULES)
def test_every_rule_takes_the_arguments_of_the_contract(name: str) -> None:
    is_code = name in RUNS_CODE
    answer = "A" if name == "choice" else "1"
    score = load_rule(name).compute_score(
        data_source="x",
        solution_str="no code" if is_code else answer,
        ground_truth="assert f() == 1" if is_code else answer,
        extra_info={"target_length": 1},
    )
    assert score == (0.0 if is_code or name == "format" else 1.0)


def test_a_missing_gold_is_found_by_the_rules_that_need_one() -> None:
    found = {name: reference_problem(name, None) for name in RULES}
    assert {name for name, problem in found.items() if problem is None} == {"format"}
    assert reference_problem("length", None, {"target_length": 8}) is None


def test_math_reasoning_grades_numbers_as_numbers_and_the_rest_as_mathematics() -> None:
    score = choose("math_reasoning")
    assert score("math_reasoning", "15 + 27 = 42", "42") == 1.0
    assert score("math_reasoning", "结果是 42。", 42) == 1.0
    assert score("math_reasoning", "15 + 27 = 43", "42") == 0.0
    assert score("math_reasoning", r"\boxed{1+x}", "x + 1") == 1.0
    assert reference_problem("math_reasoning", r"\frac{1") is not None


def test_exact_is_equality_without_the_space_around() -> None:
    assert exact.compute_score("sums", " 19\n", 19) == 1.0
    assert exact.compute_score("sums", "19.", "19") == 0.0


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("<think>a</think><answer>b</answer>", 1.0),
        ("\n<think>a\nb</think>\n\n<answer>b</answer>\n", 1.0),
        ("<think>a</think><answer></answer>", 0.0),
        ("<think> </think><answer>b</answer>", 0.0),
        ("<think>a</think><answer>b</answer> and more", 0.0),
        ("<answer>b</answer><think>a</think>", 0.0),
        ("<think>a</think><think>a</think><answer>b</answer>", 0.0),
        ("<think>a</think>b", 0.0),
    ],
)
def test_the_form_is_one_thought_and_one_answer_and_nothing_else(
    response: str, score: float
) -> None:
    assert form.compute_score("format", response) == score


def test_length_is_the_share_of_the_target() -> None:
    extra_info = {"target_length": 8}
    scores = [length.compute_score("length", "x" * n, None, extra_info) for n in (0, 2, 8, 80)]
    assert scores == [0.0, 0.25, 1.0, 1.0]
    for bad in (None, {}, {"target_length": 0}, {"target_length": "8"}, {"target_length": True}):
        with pytest.raises(ValueError, match="target_length"):
            length.compute_score("length", "x", None, bad)


@pytest.mark.parametrize(("rule", "gold"), [("math", "1"), ("gsm8k", "1"), ("choice", "B")])
@pytest.mark.parametrize(
    "piece",
    [
        "\n",
        ".",
        "$",
        "\\(",
        "$x$ or ",
        "\\text{",
        "\\boxed{",
        "\\boxed{1} or ",
        "#### ",
        "#### 1 ",
        "<answer>",
        "1,",
        "1 or ",
        "\x00",
        "A",
        "so ",
        "answer is ",
        "答案是",
        "Option A ",
        "\\frac",
        "(",
        "{",
        "\t",
    ],
)
@pytest.mark.parametrize("opening", ["", "the answer is ", "#### ", "<answer>"])
def test_a_response_that_repeats_itself_is_graded_quickly(
    opening: str, piece: str, rule: str, gold: str
) -> None:
    """Linear: below 0.1 s. Quadratic: a minute."""
    begun = time.process_time()
    load_rule(rule).compute_score("", opening + piece * (80_000 // len(piece)) + "1}", gold, {})
    assert time.process_time() - begun < 5.0
