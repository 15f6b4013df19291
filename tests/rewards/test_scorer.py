"""From the reward section of a configuration to a scorer."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from rlcli.config.schema import RewardConfig
from rlcli.errors import RewardError
from rlcli.rewards import build_scorer, check_reward, gold_problems


def test_rules_score_what_the_data_source_says(rollout: Any) -> None:
    config = RewardConfig(fn="rules", workers=2)
    check_reward(config, {"openai/gsm8k", "sums"})
    scorer = build_scorer(config)
    try:
        rewards = scorer.score([rollout("#### 7", "7", "gsm8k"), rollout("8", "7", "sums")])
    finally:
        scorer.close()
    assert [reward.value for reward in rewards] == [1.0, 0.0]
    assert not scorer.is_service


def test_a_named_rule_scores_rows_of_any_data_source(rollout: Any) -> None:
    config = RewardConfig(fn="exact")
    check_reward(config, {"", "mine"})
    scorer = build_scorer(config)
    try:
        assert scorer.score([rollout("a", "a", "mine")])[0].value == 1.0
    finally:
        scorer.close()


def test_a_data_source_without_a_rule_is_refused() -> None:
    with pytest.raises(RewardError, match="no built-in rule grades data_source 'mine'"):
        check_reward(RewardConfig(fn="rules"), {"gsm8k", "mine"})


def test_weights_for_a_rule_are_refused_and_for_a_function_used(
    user_file: Any, rollout: Any
) -> None:
    with pytest.raises(RewardError, match="returns one number without parts"):
        check_reward(RewardConfig(fn="gsm8k", weights={"form": 1.0}), {"gsm8k"})
    fn = user_file("def compute_score(**row): return {'right': 1.0, 'form': 0.5}")
    config = RewardConfig(fn=fn, weights={"right": 1.0, "form": 2.0})
    check_reward(config, {"anything"})
    scorer = build_scorer(config)
    try:
        assert scorer.score([rollout("x")])[0].value == 2.0
    finally:
        scorer.close()


def test_a_function_that_does_not_load_is_refused(user_file: Any) -> None:
    with pytest.raises(RewardError, match=r"reward\.py:1: SyntaxError"):
        check_reward(RewardConfig(fn=user_file("def (")), {"x"})


def test_golds_that_no_rule_can_grade_are_found() -> None:
    rows = [
        ("a.jsonl:1", "gsm8k", "72"),
        ("a.jsonl:2", "gsm8k", "seventy"),
        ("a.jsonl:3", "math", None),
    ]
    assert gold_problems(RewardConfig(fn="rules"), rows) == [
        "a.jsonl:2: ground_truth 'seventy' is not a number (rule gsm8k).",
        "a.jsonl:3: there is no ground_truth (rule math).",
    ]
    assert gold_problems(RewardConfig(fn="mine.py:f"), rows) == []


def test_importing_rewards_and_data_loads_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "pyarrow", "sympy", "math_verify", "huggingface_hub"}
    code = (
        "import sys, rlcli.rewards, rlcli.rewards.worker, rlcli.data.readers, "
        "rlcli.data.prompts, rlcli.data.convert\n"
        f"print(*(set(sys.modules) & {heavy}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
