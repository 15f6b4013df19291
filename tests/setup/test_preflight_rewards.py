"""Judge, reward model, function and mix: which of them scores, and what is said of the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlcli.errors import ConfigError

MIX = "composite_reward:\n  enable: true\n  weights:\n    rm_score: 0.7\n    rule_score: 0.3\n"


@pytest.mark.parametrize(
    "flags", [{"rm_model": "qwen-plus"}, {"rm_api_type": "openai"}, {"max_judge_cost": 5}]
)
def test_settings_of_a_judge_nobody_asked_for_are_refused(checked: Any, flags: Any) -> None:
    with pytest.raises(ConfigError) as refused:
        checked(flags=flags)
    message = str(refused.value)
    assert f"flag --{next(iter(flags))}" in message
    assert "Add --use_api_reward" in message
    assert "--no_use_api_reward" in message


def test_settings_of_a_judge_that_is_off_are_listed(checked: Any) -> None:
    flags = {"rm_model": "qwen-plus", "rm_rpm": 60, "use_api_reward": False}
    assert checked(flags=flags).notes == [
        "not used: reward.judge.model, reward.judge.rpm "
        "(reward.judge.enabled is off; --use_api_reward turns it on)."
    ]


def test_a_judges_file_that_lies_around_stops_no_run(checked: Any) -> None:
    (note,) = checked(file="reward:\n  judge:\n    model: qwen-plus\n").notes
    assert note.startswith("not used: reward.judge.model")


def test_a_mix_file_without_a_model_leaves_the_rules_alone(checked: Any) -> None:
    resolved = checked(file=MIX)
    assert not resolved.config.reward.composite
    assert resolved.config.reward.weights == {}
    assert resolved.notes == [
        "not used: reward.composite, reward.weights "
        "(neither judge nor reward model: reward.fn alone scores)."
    ]


def test_a_mix_with_a_model_is_a_mix(checked: Any) -> None:
    for flags in ({"reward_model": "some/rm"}, {"use_api_reward": True}):
        reward = checked(file=MIX, flags=flags).config.reward
        assert reward.composite
        assert reward.weights == {"rm_score": 0.7, "rule_score": 0.3}


def test_weights_of_a_mix_turn_it_on_unless_it_is_off(checked: Any) -> None:
    weights = "reward.weights={rm_score: 0.7, rule_score: 0.3}"
    on = checked(weights, flags={"reward_model": "some/rm"})
    assert on.config.reward.composite
    assert "turns reward.composite on" in on.notes[0]
    off = checked(weights, "reward.composite=false", flags={"reward_model": "some/rm"})
    assert off.config.reward.weights == {}
    assert off.notes == ["not used: reward.weights (reward.composite is off)."]


@pytest.mark.parametrize(
    ("overrides", "flags", "words"),
    [
        (["reward.composite=true"], {}, ["reward.composite=true", "--use_api_reward"]),
        (
            ["reward.judge.rule_first=true", "reward.composite=true"],
            {"use_api_reward": True},
            ["reward.judge.rule_first=true (from override", "reward.composite=true (from override"],
        ),
        (
            ["reward.judge.rule_first=true", "reward.weights={judge: 0.5, rule_score: 0.5}"],
            {"use_api_reward": True},
            ["reward.composite=true (from override reward.weights", "Leave one of the two out"],
        ),
        (
            ["reward.judge.rule_first=true"],
            {"use_api_reward": True, "reward_model": "some/rm"},
            ["reward.model=some/rm (from flag --reward_model)", "Leave one of the two out"],
        ),
        (
            ["reward.judge.rule_first=true", "adv_estimator=gdpo", "reward.weights={a: 1.0}"],
            {"use_api_reward": True},
            ["gdpo needs the same parts", "reward.composite=true"],
        ),
        (
            ["reward.judge.rule_first=true"],
            {},
            ["a setting of the judge, and the judge is not on", "Add --use_api_reward"],
        ),
        (
            ["reward.normalize=fixed", "reward.normalize_mean=1"],
            {"reward_model": "some/rm"},
            ["needs reward.normalize_std, not set", "`rlcli reward test`", "normalize=running"],
        ),
        (
            ["reward.normalize=fixed"],
            {"reward_model": "some/rm"},
            ["needs reward.normalize_mean and reward.normalize_std, not set"],
        ),
    ],
)
def test_scores_that_exclude_each_other_are_refused(
    checked: Any, overrides: list[str], flags: Any, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as refused:
        checked(*overrides, flags=flags)
    assert all(word in str(refused.value) for word in words), refused.value
    assert len(str(refused.value).splitlines()) <= 3


def test_a_function_that_lies_around_gives_way_to_a_judge(checked: Any, tmp_path: Path) -> None:
    resolved = checked(
        file="reward:\n  fn: exact\n  timeout_s: 3\n", flags={"use_api_reward": True}
    )
    assert resolved.notes[0].startswith("not used: reward.fn (reward.judge.enabled gives")
    assert resolved.notes[1].startswith("not used: reward.timeout_s (no function scores")


def test_parts_of_a_function_are_no_mix(checked: Any) -> None:
    weights = "reward.weights={rm_score: 1.0, rule_score: 0.5}"
    resolved = checked("adv_estimator=gdpo", weights)
    assert not resolved.config.reward.composite
    assert resolved.config.reward.weights == {"rm_score": 1.0, "rule_score": 0.5}


def test_rule_first_reads_the_function_and_its_settings(checked: Any) -> None:
    resolved = checked(
        "reward.judge.rule_first=true",
        file="reward:\n  fn: exact\n  timeout_s: 3\n",
        flags={"use_api_reward": True},
    )
    assert resolved.config.reward.fn == "exact"
    assert not [note for note in resolved.notes if note.startswith("not used")]


def test_rule_first_takes_the_guides_function(checked: Any, tmp_path: Path) -> None:
    (tmp_path / "common").mkdir()
    (tmp_path / "common/reward_functions.py").write_text("def compute_score(**row): return None\n")
    with_judge = checked(flags={"use_api_reward": True})
    assert with_judge.config.reward.fn == "rules"
    first = checked("reward.judge.rule_first=true", flags={"use_api_reward": True})
    assert first.config.reward.fn == "common/reward_functions.py:compute_score"


def test_a_fixed_scale_without_a_reward_model_is_listed(checked: Any) -> None:
    assert checked("reward.normalize=fixed").notes == [
        "not used: reward.normalize (no reward model scores in this run)."
    ]


@pytest.mark.parametrize(
    ("algo", "is_told"), [("ppo", True), ("reinforce_plus_plus", True), ("grpo", False)]
)
def test_a_panel_whose_members_are_compared_is_spoken_of(
    algo: str, is_told: bool, checked: Any
) -> None:
    panel = ["reward.judge.enabled=true", "reward.judge.panel=[qwen-max]"]
    told = [note for note in checked(*panel, algo=algo).notes if "stricter" in note]
    assert len(told) == is_told
    assert not [n for n in checked(*panel[:1], algo=algo).notes if "stricter" in n]
