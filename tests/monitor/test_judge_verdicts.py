"""Health verdicts on a judge: each by a series made for it, and silence where nothing is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from rlcli.config.resolved import with_values
from rlcli.config.schema import Config
from rlcli.monitor.health import Health
from rlcli.monitor.health_checks import HealthVerdict

CONFIG = with_values(
    Config(),
    {
        "rollout.n": 8,
        "train.prompts_per_step": 64,
        "train.mini_batch_prompts": 64,
        "reward.judge.enabled": True,
    },
)
WELL = {
    "reward_mean": 0.5,
    "reward_std": 0.3,
    "unscored": 0.0,
    "zero_variance_share": 0.1,
    "reward_length_correlation": 0.1,
    "judge/score_mean": 0.5,
    "judge/score_std": 0.3,
    "judge/length_correlation": 0.1,
    "judge/rule_agreement": 0.8,
    "judge/injection_rate": 0.01,
    "judge/canary_score": 0.1,
}
MIX = {"reward.composite": True, "reward.weights": {"judge": 0.5, "rule_score": 0.5}}


def after(steps: int, config: Config = CONFIG, **metrics: Any) -> list[tuple[int, HealthVerdict]]:
    """(step, verdict) of a run that is well but for these metrics."""
    health = Health(config)
    own = {**WELL, **{name.replace("__", "/"): value for name, value in metrics.items()}}
    return [(step, one) for step in range(1, steps + 1) for one in health.after(step, own)]


def test_a_judge_that_is_well_is_not_spoken_of() -> None:
    assert after(60) == []


@pytest.mark.parametrize(
    ("metrics", "name", "step", "words"),
    [
        ({"judge__canary_score": 0.4}, "judge_canary", 1, "got 0.40 of 1"),
        ({"judge__injection_rate": 0.06}, "judge_injections", 2, "6% of the responses"),
        ({"judge__score_std": 0.0}, "judge_alike", 3, "the same score (0.50 of 1)"),
        ({"judge__length_correlation": 0.65}, "judge_length", 5, "r = 0.65"),
        ({"judge__rule_agreement": 0.6}, "judge_agreement", 3, "in only 60%"),
        ({"judge__cache_lost": 1.0}, "judge_cache", 1, "goes on without it"),
    ],
)
def test_each_is_found_told_once_and_names_a_knob(
    metrics: dict[str, Any], name: str, step: int, words: str
) -> None:
    ((at, verdict),) = after(30, **metrics)
    assert (at, verdict.name) == (step, name)
    assert words in verdict.says
    assert "reward.judge." in verdict.cure


@pytest.mark.parametrize("changes", [MIX, {"reward.judge.rule_first": True}])
def test_rule_first_is_named_only_where_it_can_be_set(changes: dict[str, Any]) -> None:
    ((_, verdict),) = after(1, judge__canary_score=0.4)
    assert "reward.judge.rule_first" in verdict.cure
    ((_, verdict),) = after(1, with_values(CONFIG, changes), judge__canary_score=0.4)
    assert "reward.judge.rule_first" not in verdict.cure


def test_a_judge_without_a_spread_is_told_once_not_as_groups_as_well() -> None:
    ((_, verdict),) = after(30, judge__score_std=0.0, zero_variance_share=1.0)
    assert verdict.name == "judge_alike"


def test_where_the_whole_reward_follows_length_that_is_said_alone() -> None:
    found = after(30, judge__length_correlation=0.8, reward_length_correlation=0.8)
    assert [verdict.name for _, verdict in found] == ["reward_length"]


@pytest.mark.parametrize(
    ("counts", "cure"),
    [
        ({"blocked": 40, "bad": 10}, "reward.judge.provider"),
        ({"bad": 40, "blocked": 10}, "replies hold no score"),
        ({"request": 40}, "data.max_response_tokens"),
        ({"throttle": 40, "bad": 1}, "reward.judge.rpm"),
        ({"transient": 40}, "reward.judge.timeout_s"),
        ({}, "reward.judge.concurrency"),
    ],
)
def test_the_fault_that_took_most_scores_names_the_knob(
    counts: dict[str, float], cure: str
) -> None:
    named: dict[str, Any] = {f"judge__unscored_{kind}": n for kind, n in counts.items()}
    ((step, verdict),) = after(30, unscored=51.2, **named)
    assert (step, verdict.name) == (2, "unscored")
    assert "the judge leaves 10%" in verdict.says
    assert cure in verdict.cure


def test_in_a_mix_the_judge_is_blamed_only_for_faults_of_its_own() -> None:
    mix = with_values(CONFIG, MIX)
    ((_, verdict),) = after(5, mix, unscored=51.2)
    assert "the reward leaves" in verdict.says
    ((_, verdict),) = after(5, mix, unscored=51.2, judge__unscored_bad=60.0)
    assert "the judge leaves" in verdict.says
