"""The arithmetic of a mix, and its parts."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from held_scorer import Held

from rlcli.rewards.composite_scorer import CompositeScorer, weighted_sum
from rlcli.rewards.normalize import FixedScale, RunningScale
from rlcli.types import Reward


def test_a_composite_is_the_weighted_sum_of_raw_parts() -> None:
    rewards = {
        "rm_score": Reward(value=-2.0, usage={"tokens": 3.0}),
        "rule_score": Reward(value=1.0, parts={"form": 0.5}, usage={"tokens": 1.0}),
    }
    # 0.7 * -2.0 + 0.3 * 1.0
    mixed = weighted_sum(rewards, weights={"rm_score": 0.7, "rule_score": 0.3})
    assert mixed.value == pytest.approx(-1.1)
    assert mixed.parts == {"rm_score": -2.0, "rule_score": 1.0}
    assert mixed.usage == {"tokens": 4.0}


def test_a_composite_with_an_unscored_part_is_unscored_and_says_which() -> None:
    rewards = {
        "rm_score": Reward(value=None, error="too long"),
        "rule_score": Reward(value=1.0),
        "judge": Reward(value=None, error="blocked"),
    }
    mixed = weighted_sum(rewards, weights=dict.fromkeys(rewards, 1.0))
    assert mixed == Reward(
        value=None, parts={"rule_score": 1.0}, error="rm_score: too long; judge: blocked"
    )


def test_parts_are_scored_side_by_side_and_the_whole_waits_for_the_last(rollout: Any) -> None:
    first, second = Held(), Held(is_service=True)
    mixed = CompositeScorer(
        {"rule_score": first, "rm_score": second}, {"rule_score": 1.0, "rm_score": 10.0}
    )
    whole = mixed.submit(rollout("x"))
    second.futures[0].set_result(Reward(value=0.5))
    assert not whole.done()
    threading.Timer(0.01, first.futures[0].set_result, [Reward(value=1.0)]).start()
    assert whole.result(timeout=60).value == 6.0
    mixed.close()
    assert first.is_closed
    assert second.is_closed


def test_a_bug_in_a_part_and_a_closed_part_end_the_whole(rollout: Any) -> None:
    part, other = Held(), Held()
    mixed = CompositeScorer({"judge": part, "rule_score": other}, {"judge": 1.0, "rule_score": 1.0})
    broken, closed, unwanted = (mixed.submit(rollout("x")) for _ in range(3))
    assert unwanted.cancel()
    for future in other.futures:
        future.set_result(Reward(value=1.0))
    part.futures[0].set_exception(ZeroDivisionError())
    part.futures[1].cancel()
    part.futures[2].set_result(Reward(value=1.0))
    assert isinstance(broken.exception(timeout=60), ZeroDivisionError)
    assert closed.result(timeout=60) == Reward(value=None, error="the scorer was closed")
    assert unwanted.cancelled()


def test_only_the_part_that_failed_is_asked_again_and_decides_whether_to_wait(
    rollout: Any,
) -> None:
    rule, judge = Held(), Held(is_service=True)
    mixed = CompositeScorer({"rule_score": rule, "judge": judge}, {"rule_score": 1, "judge": 10})
    first = mixed.submit(rollout("x"))
    rule.futures[0].set_result(Reward(value=1.0))
    judge.futures[0].set_result(Reward(value=None, error="busy", usage={"calls": 5.0}))
    before = first.result(timeout=60)
    assert mixed.can_recover(before)
    again = mixed.submit(rollout("x"), before=before)
    judge.futures[1].set_result(Reward(value=0.5, usage={"calls": 1.0}))
    assert again.result(timeout=60) == Reward(
        value=6.0, parts={"rule_score": 1.0, "judge": 0.5}, usage={"calls": 1.0}
    )
    assert len(rule.futures) == 1
    for parts in ({"judge": 1.0}, {}):
        assert not mixed.can_recover(Reward(value=None, parts=parts))


def test_what_a_part_keeps_outlives_a_change_of_the_mix() -> None:
    mixed = CompositeScorer(
        {"rule_score": Held(), "judge": Held(is_service=True)}, {"rule_score": 1, "judge": 1}
    )
    assert mixed.state() == {"spent_usd": 1.5}
    alone = Held(is_service=True)
    alone.load_state({"spent_usd": 9.0} | mixed.state())
    assert alone.state() == {"spent_usd": 1.5}


def test_a_part_that_does_not_close_leaves_no_other_open() -> None:
    class Stuck(Held):
        def close(self) -> None:
            raise OSError("stuck")

    other = Held()
    mixed = CompositeScorer({"judge": Stuck(), "rule_score": other}, {"judge": 1, "rule_score": 1})
    with pytest.raises(OSError, match="stuck"):
        mixed.close()
    assert other.is_closed


def test_canaries_and_metrics_are_those_of_the_parts() -> None:
    mixed = CompositeScorer(
        {"rule_score": Held(), "judge": Held(is_service=True)}, {"rule_score": 1, "judge": 1}
    )
    assert len(mixed.canaries(0, [])) == 1
    assert mixed.metrics() == {"judge/retries": 2.0}


def test_a_judges_reason_is_kept_also_when_another_part_is_asked_again(rollout: Any) -> None:
    model, judge = Held(is_service=True), Held(is_service=True)
    mixed = CompositeScorer({"rm_score": model, "judge": judge}, {"rm_score": 1, "judge": 1})
    first = mixed.submit(rollout("x"))
    model.futures[0].set_result(Reward(value=None, error="busy"))
    judge.futures[0].set_result(Reward(value=0.5, reason="half right"))
    before = first.result(timeout=60)
    again = mixed.submit(rollout("x"), before=before)
    model.futures[1].set_result(Reward(value=1.0))
    assert before.reason == again.result(timeout=60).reason == "half right"


def mix(rm: float | None, rule: float) -> Reward:
    """A reward of 0.7 rm_score + 0.3 rule_score as it comes from `submit`."""
    parts = {"rule_score": rule} if rm is None else {"rm_score": rm, "rule_score": rule}
    value = None if rm is None else 0.7 * rm + 0.3 * rule
    return Reward(value=value, parts=parts, error="too long" if rm is None else None)


def scaled(scale: RunningScale | FixedScale | None) -> CompositeScorer:
    weights = {"rm_score": 0.7, "rule_score": 0.3}
    return CompositeScorer({name: Held() for name in weights}, weights, scale=scale)


STEP = [mix(1.0, 1.0), mix(3.0, 0.0), mix(None, 1.0), mix(5.0, 0.0), mix(7.0, 1.0)]
# 1, 3, 5, 7: mean 4, deviation sqrt((9 + 1 + 1 + 9) / 4) = sqrt(5)


def test_a_step_counts_on_the_scale_of_its_scores_and_the_parts_stay_raw() -> None:
    settled = scaled(RunningScale("m")).normalize(STEP, update_stats=True)
    root = 5**0.5
    expected = [0.7 * -3 / root + 0.3, 0.7 * -1 / root, None, 0.7 / root, 0.7 * 3 / root + 0.3]
    assert [reward.value for reward in settled] == [
        value if value is None else pytest.approx(value) for value in expected
    ]
    assert [reward.parts for reward in settled] == [reward.parts for reward in STEP]
    assert settled[2] == STEP[2]


def test_a_fixed_scale_stays_as_it_is() -> None:
    mixed = scaled(FixedScale(2.0, 0.5))
    for _ in range(2):
        (reward,) = mixed.normalize([mix(3.0, 1.0)], update_stats=True)
        # 0.7 * (3 - 2) / 0.5 + 0.3
        assert reward.value == pytest.approx(1.7)
    assert mixed.state() == {"scale": {}}


def test_without_a_scale_the_sums_are_raw() -> None:
    assert scaled(None).normalize(STEP, update_stats=True) == STEP


def test_what_is_equal_before_is_equal_after() -> None:
    settled = scaled(RunningScale("m")).normalize(
        [mix(0.1, 1.0)] * 3 + [mix(0.2, 1.0)], update_stats=True
    )
    assert len({reward.value for reward in settled}) == 2
    assert len({reward.value for reward in settled[:3]}) == 1


def test_the_scale_is_kept_beside_what_the_judge_spent() -> None:
    def build() -> CompositeScorer:
        parts = {"rm_score": Held(), "judge": Held(is_service=True)}
        return CompositeScorer(parts, {"rm_score": 1, "judge": 1}, scale=RunningScale("m"))

    reward = Reward(value=3.0, parts={"rm_score": 2.0, "judge": 1.0})
    mixed = build()
    mixed.normalize([reward], update_stats=True)
    state = mixed.state()
    assert state["spent_usd"] == 1.5
    assert state["scale"]["training"] == [1, 2.0, 0.0]
    resumed = build()
    resumed.load_state(state)
    assert resumed.state()["scale"] == state["scale"]
    resumed.load_state({"spent_usd": 1.0})
    assert resumed.state()["scale"]["training"] == [0, 0.0, 0.0]
