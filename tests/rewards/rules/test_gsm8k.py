"""Numbers in all the ways models write them."""

from __future__ import annotations

import pytest

from rlcli.rewards.rules.gsm8k import compute_score, reference_problem


def score(response: str, gold: str) -> float:
    return compute_score("openai/gsm8k", response, gold)


@pytest.mark.parametrize(
    "response",
    [
        "48/2 = 24\n#### 42",
        "#### 42.",
        "#### $42",
        "#### \\$42.00",
        "#### 42.0",
        "#### 42 apples",
        "#### 42 (since 15 + 27 = 42)",
        "####42\n\nLet me know if you want 3 more examples, or a check of step 2!",
        "#### Answer: 42",
        "The answer is 42.",
        "The answer to 15 plus 27 is 42",
        "The answer is 42 dollars per 7 days.",
        "The answer is x = 42.",
        "The answer is 15 + 27 = 42 apples.",
        "The answer is $15 \\times 1 + 27 = 42$.",
        "**Answer:** 42",
        "**Final Answer**\n\n42",
        "### Answer\n42 apples",
        "the answer is: **42**",
        "Answer: $42$",
        "Final answer: \\(42\\)",
        "答案是42。",
        "答案：４２",
        "所以最终答案为 42 个苹果。",
        "计算结果：15 + 27 = 42。",
        "结果是42，因为 5+7=12",
        "答：小明有42个苹果。",
        "\\boxed{42}",
        "$\\boxed{42\\text{ apples}}$",
        "\\boxed{41}. That is wrong, so \\boxed{42}",
        "<think>41</think><answer>42</answer>",
        "<answer>42</answer> Thanks for the 7 questions",
        "<think>The answer is 41.</think> So 42",
        "15 + 27 = 42",
        "- 15 apples\n- 27 pears\nTotal: 42",
    ],
)
def test_a_stated_42_counts(response: str) -> None:
    assert score(response, "42") == 1.0
    assert score(response, "43") == 0.0


@pytest.mark.parametrize(
    ("response", "gold"),
    [
        ("#### 1,080", "1080"),
        ("#### 1080", "1,080"),
        ("#### 1\u202f080", "1080"),
        ("\\boxed{1{,}080}", "1080"),
        ("\\boxed{1,\\!080}", "1080"),
        ("#### −3", "-3"),
        ("答案是−3。", "-3"),
        ("#### -$3", "-3"),
        ("#### $-3", "-3"),
        ("$1,234.50", "1234.5"),
        ("\\boxed{\\frac{1}{2}}", "1/2"),
        ("0.5", "\\frac12"),
        ("72", "\\boxed{72}"),
        ("72", "Half of 144.\n#### 72"),
        ("2.5", "2.5 hours"),
    ],
)
def test_the_same_number_counts_however_it_is_written(response: str, gold: str) -> None:
    assert score(response, gold) == 1.0


def test_a_percent_sign_is_a_unit_or_divides_by_a_hundred() -> None:
    assert score("#### 25%", "25") == 1.0
    assert score("#### 25", "25%") == 1.0
    assert score("#### 0.25", "25%") == 1.0
    assert score("#### 25%", "0.25") == 1.0
    assert score("#### 0.25%", "25%") == 0.0
    assert score("#### 2500%", "2500%") == 1.0
    assert score("#### 25", "2500%") == 1.0
    assert score("#### 2500", "25%") == 0.0


@pytest.mark.parametrize(
    ("response", "gold"),
    [
        ("#### 41 or 42", "41"),
        ("#### 41, 42", "41"),
        ("The answer is 41 apples or 42 apples", "41"),
        ("\\boxed{41} or \\boxed{42}", "42"),
        ("\\boxed{41}, \\boxed{42}", "41"),
        ("#### 42\n#### 43", "42"),
        ("#### 420", "42"),
        ("#### 4.2", "42"),
        ("-42", "42"),
        ("", "42"),
        ("I do not know.", "42"),
    ],
)
def test_hedged_other_and_missing_answers_get_nothing(response: str, gold: str) -> None:
    assert score(response, gold) == 0.0


def test_a_gold_that_is_no_number_is_found() -> None:
    assert reference_problem("42") is None
    assert reference_problem("forty-two") == "ground_truth 'forty-two' is not a number"
    with pytest.raises(ValueError, match="is not a number"):
        score("#### 42", "forty-two")
