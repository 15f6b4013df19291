"""Means and deviations of a reward model's scores, merged step by step."""

from __future__ import annotations

import json
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlcli.rewards.normalize import FixedScale, Moments, RunningScale, moments_of

SCORES = st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1, max_size=30)


def test_the_moments_of_a_step() -> None:
    # mean 4; distances -3, -1, 1, 3 squared: 9 + 1 + 1 + 9
    assert moments_of([1.0, 3.0, 5.0, 7.0]) == Moments(4, 4.0, 20.0)
    assert moments_of([]) == Moments()
    assert Moments().std == 0.0


def test_two_steps_merge_into_the_moments_of_both() -> None:
    # 1, 3 (mean 2, squares 2) and 5, 7, 9 (mean 7, squares 8): away 5, 5 * 5 * 2 * 3 / 5 = 30
    both = moments_of([1.0, 3.0]).merged(moments_of([5.0, 7.0, 9.0]))
    assert both == Moments(5, 5.0, 40.0)
    assert both.std == pytest.approx(8.0**0.5)


@given(SCORES, SCORES)
def test_merged_moments_are_those_of_all_numbers(first: list[float], second: list[float]) -> None:
    merged = moments_of(first).merged(moments_of(second))
    assert merged.count == len(first + second)
    size = 1e-9 * max(1.0, *map(abs, first + second))
    assert merged.mean == pytest.approx(statistics.fmean(first + second), abs=size)
    assert merged.std == pytest.approx(statistics.pstdev(first + second), rel=1e-6, abs=size)


@given(SCORES, st.randoms(use_true_random=False))
def test_the_order_within_a_step_changes_no_bit(scores: list[float], rng: random.Random) -> None:
    shuffled = rng.sample(scores, len(scores))
    assert moments_of(shuffled) == moments_of(scores)


@given(st.floats(-1e6, 1e6), st.integers(1, 50))
def test_one_distinct_score_is_exactly_0(score: float, count: int) -> None:
    scale = RunningScale("m")
    for _ in range(3):
        assert scale.moments([score] * count, update_stats=True).scaled(score) == 0.0


def test_a_spread_that_float32_cannot_tell_is_none() -> None:
    noise = moments_of([1000.0, 1000.0 + 1e-5])
    assert abs(noise.scaled(1000.0)) < 1e-4
    assert moments_of([0.0, 1e-3]).scaled(1e-3) == pytest.approx(1.0)


def test_a_running_scale_takes_in_every_step_of_training_and_no_evaluation() -> None:
    scale = RunningScale("m")
    scale.moments([100.0, 300.0], update_stats=False)
    assert scale.moments([1.0, 3.0], update_stats=True) == Moments(2, 2.0, 2.0)
    scale.moments([100.0, 300.0], update_stats=False)
    assert scale.moments([5.0, 7.0, 9.0], update_stats=True) == Moments(5, 5.0, 40.0)


def test_evaluations_stay_on_the_scale_of_the_first() -> None:
    scale = RunningScale("m")
    first = scale.moments([1.0, 3.0], update_stats=False)
    scale.moments([9.0, 11.0], update_stats=True)
    assert scale.moments([5.0, 7.0], update_stats=False) == first
    # before: (2 - 2) / 1; after: (6 - 2) / 1
    assert first.scaled(6.0) == 4.0


@given(st.lists(SCORES, min_size=2, max_size=6))
def test_a_scale_that_is_kept_as_json_goes_on_bit_equal(steps: list[list[float]]) -> None:
    whole, resumed = RunningScale("m"), RunningScale("m")
    for scores in steps:
        state = json.loads(json.dumps(resumed.state()))
        resumed = RunningScale("m")
        resumed.load_state(state)
        expected = (
            whole.moments(scores, update_stats=True),
            whole.moments(scores, update_stats=False),
        )
        assert (
            resumed.moments(scores, update_stats=True),
            resumed.moments(scores, update_stats=False),
        ) == (expected)


def test_scores_of_another_model_are_forgotten() -> None:
    scale, other = RunningScale("m"), RunningScale("other")
    scale.moments([1.0, 3.0], update_stats=True)
    other.load_state(scale.state())
    assert other.moments([8.0], update_stats=True) == Moments(1, 8.0, 0.0)


def test_a_fixed_scale_is_what_it_was_given() -> None:
    for update_stats in (True, False):
        assert FixedScale(2.0, 0.5).moments([9.0], update_stats=update_stats).scaled(3.0) == 2.0
