"""Which preset a run starts from."""

from __future__ import annotations

from typing import Any

import pytest

from rlcli.errors import ConfigError


def test_the_algorithm_of_the_highest_source_wins(run: Any) -> None:
    file = "algorithm:\n  adv_estimator: remax\n"
    assert run(preset="quickstart").config.algorithm.name == "grpo"
    assert run(preset="quickstart", file=file).config.algorithm.name == "remax"
    assert run("algorithm.adv_estimator=rloo", file=file).config.algorithm.name == "rloo"
    assert run("algorithm.name=opo", file=file).config.algorithm.name == "opo"
    assert run("algorithm.adv_estimator=rloo", algo="gpg").config.algorithm.name == "gpg"


def test_an_algorithm_flag_against_another_estimator_says_who_wins(run: Any) -> None:
    notes = run("algorithm.adv_estimator=opo", algo="grpo").notes
    assert "flag --algo beats algorithm.adv_estimator=opo." in notes
    assert run("algorithm.adv_estimator=grpo", algo="dapo").notes == []


def test_a_recipe_for_another_algorithm_says_so(run: Any) -> None:
    notes = run(algo="opo", preset="quickstart").notes
    assert notes == ["recipe quickstart is made for grpo; this run uses opo (from flag --algo)."]


def test_grpo_without_std_is_dr_grpo_only_through_the_estimator(run: Any) -> None:
    switch = "algorithm.norm_adv_by_std_in_grpo=false"
    assert run("algorithm.adv_estimator=grpo", switch).config.algorithm.name == "dr_grpo"
    by_flag = run(switch, algo="grpo").config.algorithm
    assert (by_flag.name, by_flag.scale_by_std) == ("grpo", False)


def test_an_algorithm_preset_can_be_named_by_preset(run: Any) -> None:
    assert run(preset="dapo").config.algorithm.name == "dapo"
    assert run(preset="DrGRPO", algo="dr_grpo").config.algorithm.name == "dr_grpo"
    with pytest.raises(ConfigError, match="both algorithms"):
        run(preset="dapo", algo="grpo")
    with pytest.raises(ConfigError, match="Use --preset quickstart"):
        run(algo="quickstart")


def test_an_estimator_without_a_preset_keeps_the_settings_of_a_group(run: Any) -> None:
    resolved = run("algorithm.adv_estimator=optimal_token_baseline")
    assert (resolved.config.algorithm.advantage, resolved.config.rollout.n) == ("otb", 4)
    assert "otb has no preset" in resolved.notes[0]
    own = run("algorithm.adv_estimator=my_pkg.mine:advantage")
    assert own.config.algorithm.advantage == "my_pkg.mine:advantage"


def test_an_unknown_algorithm_gets_the_nearest(run: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"no algorithm 'grppo' \(from flag --algo\)\. Nearest: grpo"
    ):
        run(algo="grppo")
