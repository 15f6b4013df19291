"""What clip_ratio and the KL coefficients mean."""

from __future__ import annotations

from typing import Any

import pytest

from rlcli.config.resolved import Resolved
from rlcli.errors import ConfigError
from rlcli.setup.checks import check


def test_clip_ratio_sets_both_sides_over_a_preset(run: Any) -> None:
    resolved = run("clip_ratio=0.3", algo="dapo")
    assert resolved.config.algorithm.clip_bounds == (0.3, 0.3)
    assert resolved.sources["algorithm.clip_high"] == "override clip_ratio=0.3"
    assert "were 0.2 and 0.28" in resolved.notes[0]
    assert run(algo="ppo", env={"CLIP_RATIO": "0.3"}).config.algorithm.clip_low == 0.3


def test_clip_ratio_with_another_side_is_refused(run: Any) -> None:
    with pytest.raises(ConfigError, match=r"(?s)clip_ratio=0\.2.*clip_high=0\.28.*Keep"):
        run("algorithm.clip_ratio=0.2", "actor_rollout_ref.actor.clip_ratio_high=0.28")
    same = run("clip_ratio=0.2", "clip_ratio_low=0.2", "clip_ratio_high=0.2", algo="dapo")
    assert same.config.algorithm.clip_bounds == (0.2, 0.2)


def kl(resolved: Resolved) -> tuple[bool, bool, float, float]:
    settings = resolved.config.algorithm
    return settings.kl_in_reward, settings.kl_loss, settings.kl_coef, settings.kl_loss_coef


def test_kl_coef_goes_where_the_kl_is(run: Any) -> None:
    assert kl(run(algo="ppo", flags={"kl_coef": 0.01})) == (True, False, 0.01, 0.001)
    grpo = run(algo="grpo", flags={"kl_coef": 0.01})
    assert kl(grpo) == (False, True, 0.01, 0.01)
    assert "flag --kl_coef sets algorithm.kl_loss_coef" in grpo.notes[0]
    assert grpo.sources["algorithm.kl_loss_coef"] == "flag --kl_coef"


def test_kl_coef_without_any_kl_turns_it_on(run: Any) -> None:
    opo = run(algo="opo", flags={"kl_coef": 0.01})
    assert kl(opo) == (True, False, 0.01, 0.001)
    assert "turns algorithm.kl_in_reward on" in opo.notes[0]
    loss = run("kl_loss_coef=0.01", algo="opo")
    assert kl(loss) == (False, True, 0.001, 0.01)


@pytest.mark.parametrize(
    ("algo", "overrides"),
    [
        ("ppo", ["use_kl_in_reward=False", "kl_coef=0.01"]),
        ("grpo", ["use_kl_in_reward=False", "kl_coef=0.01"]),
        ("grpo", ["use_kl_loss=False", "kl_coef=0.01"]),
        ("grpo", ["kl_loss_coef=0.002", "kl_coef=0.01"]),
    ],
)
def test_kl_coef_under_a_switch_that_is_off_is_listed(
    run: Any, algo: str, overrides: list[str]
) -> None:
    resolved = check(run(*overrides, algo=algo))
    assert [note for note in resolved.notes if note.startswith("not used: algorithm.kl_coef (")]
    assert not resolved.config.algorithm.kl_in_reward


def test_a_switch_that_is_off_counts_the_same_under_a_recipe(run: Any) -> None:
    words = ["kl_coef=0.01", "use_kl_loss=false"]
    for preset in (None, "quickstart"):
        resolved = check(run(*words, algo="grpo", preset=preset))
        assert kl(resolved)[:2] == (False, False)
        assert [note for note in resolved.notes if "not used: algorithm.kl_coef" in note]
    assert kl(run("kl_coef=0.01", algo="grpo", preset="quickstart"))[:2] == (True, False)


def test_kl_loss_coef_beside_kl_in_the_reward_is_listed(run: Any) -> None:
    resolved = check(run("kl_loss_coef=0.01", "use_kl_loss=False", algo="remax"))
    assert "not used: algorithm.kl_loss_coef (algorithm.kl_loss is off)." in resolved.notes
    assert kl(run("kl_loss_coef=0.01", algo="ppo"))[:2] == (True, False)
