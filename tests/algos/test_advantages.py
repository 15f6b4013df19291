"""Numbers worked out by hand for every estimator."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rlcli.algos import advantages as estimators

SQRT7 = math.sqrt(7)
ONE_GROUP: dict[str, Any] = {"group_B": torch.zeros(3).long(), "valid_B": torch.ones(3)}
# Scores 1, 2, 6 of one group: mean 3, variance ((-2)^2 + (-1)^2 + 3^2) / 2 = 7.
SCORES = [1.0, 2.0, 6.0]
FULL = torch.ones(3, 1)


def column(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


def double(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def alone(values: Tensor, /) -> Tensor:
    return values


def assert_close(got: Tensor | None, expected: list[list[float]]) -> None:
    assert got is not None
    assert got.tolist() == [pytest.approx(row, rel=1e-7, abs=1e-8) for row in expected]


def test_gae():
    # d = 0 + .5*2 - 1, 0 + .5*4 - 2, 8 - 4 = 0, 0, 4; A = .25, 1, 4 with gamma*lam = .25.
    # Whitened: mean 1.75, squares 2.25 + .5625 + 5.0625 = 7.875, variance 3.9375.
    got = estimators.gae(
        double([[0, 0, 8]]),
        torch.ones(1, 3),
        values_BT=double([[1, 2, 4]]),
        valid_B=torch.ones(1),
        all_reduce=alone,
        gamma=0.5,
        lam=0.5,
    )
    std = math.sqrt(3.9375 + 1e-8)
    assert_close(got.advantages_BT, [[-1.5 / std, -0.75 / std, 2.25 / std]])
    assert_close(got.returns_BT, [[1.25, 3.0, 8.0]])


def test_gae_steps_over_holes_in_the_mask():
    got = estimators.gae(
        double([[0, 77, 0, 8]]),
        torch.tensor([[1, 0, 1, 1]]),
        values_BT=double([[1, 99, 2, 4]]),
        valid_B=torch.ones(1),
        all_reduce=alone,
        gamma=0.5,
        lam=0.5,
    )
    std = math.sqrt(3.9375 + 1e-8)
    assert_close(got.advantages_BT, [[-1.5 / std, 0, -0.75 / std, 2.25 / std]])
    assert_close(got.returns_BT, [[1.25, 0.0, 3.0, 8.0]])


def test_grpo():
    got = estimators.grpo(column(SCORES), FULL, scale_by_std=True, **ONE_GROUP).advantages_BT
    assert_close(got, [[-2 / (SQRT7 + 1e-6)], [-1 / (SQRT7 + 1e-6)], [3 / (SQRT7 + 1e-6)]])


def test_grpo_without_std():
    got = estimators.grpo(column(SCORES), FULL, scale_by_std=False, **ONE_GROUP).advantages_BT
    assert_close(got, [[-2.0], [-1.0], [3.0]])


def test_grpo_puts_the_score_on_every_response_token_of_the_row():
    rewards = double([[1, 0, 0], [0, 2, 0], [0, 0, 6]])
    mask = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]])
    got = estimators.grpo(rewards, mask, scale_by_std=False, **ONE_GROUP).advantages_BT
    assert_close(got, [[-2, 0, 0], [-1, -1, 0], [3, 0, 3]])


@pytest.mark.parametrize("num_rollouts", [3, 5, 6, 7, 9, 16])
def test_grpo_equal_scores_give_exactly_zero(num_rollouts: int):
    rewards = torch.full((num_rollouts, 1), 0.1)
    rows = {"group_B": torch.zeros(num_rollouts).long(), "valid_B": torch.ones(num_rollouts)}
    got = estimators.grpo(rewards, torch.ones(num_rollouts, 1), scale_by_std=True, **rows)
    assert not got.advantages_BT.any()


def test_grpo_passk():
    got = estimators.grpo_passk(column(SCORES), FULL, scale_by_std=True, **ONE_GROUP).advantages_BT
    assert_close(got, [[0.0], [0.0], [4 / (SQRT7 + 1e-6)]])


def test_grpo_passk_without_std():
    got = estimators.grpo_passk(column(SCORES), FULL, scale_by_std=False, **ONE_GROUP).advantages_BT
    assert_close(got, [[0.0], [0.0], [4.0]])


def test_grpo_passk_two_best_rollouts_have_no_lead():
    rewards = column([6.0, 2.0, 6.0])
    got = estimators.grpo_passk(rewards, FULL, scale_by_std=True, **ONE_GROUP).advantages_BT
    assert_close(got, [[0.0], [0.0], [0.0]])


def test_rloo():
    # 1 - (2 + 6) / 2, 2 - (1 + 6) / 2, 6 - (1 + 2) / 2.
    got = estimators.rloo(column(SCORES), FULL, **ONE_GROUP).advantages_BT
    assert_close(got, [[-3.0], [-1.5], [4.5]])


def test_reinforce_plus_plus():
    # Returns 1, 2, 4 and 1, 2 at gamma .5: mean 2, squares 1 + 0 + 4 + 1 + 0 over 4 = 1.5.
    got = estimators.reinforce_plus_plus(
        double([[0, 0, 4], [0, 2, 0]]),
        torch.tensor([[1, 1, 1], [1, 1, 0]]),
        valid_B=torch.ones(2),
        all_reduce=alone,
        gamma=0.5,
    ).advantages_BT
    std = math.sqrt(1.5 + 1e-8)
    assert_close(got, [[-1 / std, 0, 2 / std], [-1 / std, 0, 0]])


def test_reinforce_plus_plus_neither_discounts_over_holes_nor_reads_them():
    # Returns 2, 4: mean 3, variance 2.
    got = estimators.reinforce_plus_plus(
        double([[0, 9, 4]]),
        torch.tensor([[1, 0, 1]]),
        valid_B=torch.ones(1),
        all_reduce=alone,
        gamma=0.5,
    ).advantages_BT
    assert_close(got, [[-1 / math.sqrt(2 + 1e-8), 0, 1 / math.sqrt(2 + 1e-8)]])


def test_reinforce_plus_plus_baseline():
    # Tokens -2, -1, 3, 3: mean .75, squares 7.5625 + 3.0625 + 2 * 5.0625 = 20.75, over 3.
    got = estimators.reinforce_plus_plus_baseline(
        double([[1, 0], [2, 0], [0, 6]]),
        torch.tensor([[1, 0], [1, 0], [1, 1]]),
        all_reduce=alone,
        **ONE_GROUP,
    ).advantages_BT
    std = math.sqrt(20.75 / 3 + 1e-8)
    assert_close(got, [[-2.75 / std, 0], [-1.75 / std, 0], [2.25 / std, 2.25 / std]])


def test_remax():
    got = estimators.remax(
        double([[0.5, 7, 2, 9], [1, 0, 0, 0]]),
        torch.tensor([[1, 0, 1, 0], [1, 0, 0, 0]]),
        baseline_B=torch.tensor([1.0, 3.0]),
        valid_B=torch.ones(2),
    ).advantages_BT
    assert_close(got, [[1.5, 0, 1.0, 0], [-2.0, 0, 0, 0]])


def test_opo():
    # Lengths 1, 2, 1: baseline (1 + 2 * 2 + 6) / 4 = 2.75.
    mask = torch.tensor([[1, 0], [1, 1], [1, 0]])
    rewards = double([[1, 0], [0, 2], [6, 0]])
    got = estimators.opo(rewards, mask, **ONE_GROUP).advantages_BT
    assert_close(got, [[-1.75, 0], [-0.75, -0.75], [3.25, 0]])


def test_opo_group_of_empty_responses_gives_zero():
    got = estimators.opo(column(SCORES), torch.zeros(3, 1), **ONE_GROUP).advantages_BT
    assert_close(got, [[0.0], [0.0], [0.0]])


def test_gpg():
    # Five rollouts, three scores that are not 0; both groups have the mean 2.
    got = estimators.gpg(
        column([1, 0, 5, 0, 4]),
        torch.ones(5, 1),
        group_B=torch.tensor([0, 0, 0, 1, 1]),
        valid_B=torch.ones(5),
        all_reduce=alone,
    ).advantages_BT
    assert_close(got, [[-5 / 3], [-10 / 3], [5.0], [-10 / 3], [10 / 3]])


def test_gpg_of_zero_scores_is_zero():
    got = estimators.gpg(column([0, 0, 0]), FULL, all_reduce=alone, **ONE_GROUP).advantages_BT
    assert_close(got, [[0.0], [0.0], [0.0]])


PAIR: dict[str, Any] = {"group_B": torch.zeros(2).long(), "valid_B": torch.ones(2)}


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        # Parts give -+x and +-x with x = 1 / sqrt 2 (but for 1e-6); tokens -x, x, x for weight 2:
        # mean x / 3, deviations -4/3 x, 2/3 x, 2/3 x, variance 4/3 x^2.
        ({"a": 2.0}, [[-2 / math.sqrt(3), 0], [1 / math.sqrt(3), 1 / math.sqrt(3)]]),
        ({}, [[0, 0], [0, 0]]),
        ({"a": 1.0, "b": 2.0}, [[2 / math.sqrt(3), 0], [-1 / math.sqrt(3), -1 / math.sqrt(3)]]),
    ],
)
def test_gdpo(weights: dict[str, float], expected: list[list[float]]):
    got = estimators.gdpo(
        torch.full((2, 2), 99.0),
        torch.tensor([[1, 0], [1, 1]]),
        parts={"a": torch.tensor([0.0, 1.0]), "b": torch.tensor([1.0, 0.0])},
        part_weights=weights,
        all_reduce=alone,
        scale_by_std=True,
        **PAIR,
    ).advantages_BT
    assert got.tolist() == [pytest.approx(row, abs=1e-5) for row in expected]


def test_gdpo_without_std_keeps_the_sizes_of_parts():
    # Parts -+1 and +-2 add up to +-1; whitened over two tokens that is +-1 / sqrt 2.
    got = estimators.gdpo(
        torch.zeros(2, 1),
        torch.ones(2, 1),
        parts={"a": torch.tensor([0.0, 2.0]), "b": torch.tensor([4.0, 0.0])},
        part_weights={},
        all_reduce=alone,
        scale_by_std=False,
        **PAIR,
    ).advantages_BT
    assert got.flatten().tolist() == pytest.approx([math.sqrt(0.5), -math.sqrt(0.5)], rel=1e-6)


def test_gdpo_without_parts_takes_the_token_rewards():
    got = estimators.gdpo(
        torch.tensor([[0.0, 1.0], [5.0, 0.0]]),
        torch.tensor([[1, 1], [1, 0]]),
        parts={},
        part_weights={},
        all_reduce=alone,
        scale_by_std=True,
        **PAIR,
    ).advantages_BT
    expected = [-1 / math.sqrt(3), -1 / math.sqrt(3), 2 / math.sqrt(3), 0]
    assert got.flatten().tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("mask", [[[1, 1, 0], [1, 0, 0]], [[1, 0, 1], [0, 1, 0]]])
def test_otb_compares_the_kth_response_tokens(mask: list[list[int]]):
    # Weights 1 - 2 pi + sum pi^2: .25 and .25 + .25 on the first row, .125 on the second.
    # First tokens: returns 1 and 3, baseline (.25 + 3 * .125) / .375 = 5/3. Then one is alone.
    mask_BT = torch.tensor(mask)
    rewards = torch.zeros(2, 3, dtype=torch.float64)
    rewards[0, 2 if mask[0][2] else 1] = 1.0
    rewards[1, 1 if mask[1][1] else 0] = 3.0
    got = estimators.otb(
        rewards,
        mask_BT,
        old_logprobs_BT=double([[0.5] * 3, [0.75] * 3]).log(),
        sum_pi_squared_BT=double([[0.25] * 3, [0.625] * 3]),
        **PAIR,
    ).advantages_BT
    assert got[0][mask_BT[0] == 1].tolist() == pytest.approx([-2 / 3, 1.0], rel=1e-7)
    assert got[1][mask_BT[1] == 1].tolist() == pytest.approx([4 / 3], rel=1e-7)


def test_otb_certain_tokens_have_no_baseline_and_no_nan():
    got = estimators.otb(
        torch.tensor([[1.0], [3.0]]),
        torch.ones(2, 1),
        old_logprobs_BT=torch.zeros(2, 1),
        sum_pi_squared_BT=torch.ones(2, 1),
        **PAIR,
    ).advantages_BT
    assert got.tolist() == [[1.0], [3.0]]
