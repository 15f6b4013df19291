from __future__ import annotations

import math
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from rlcli.algos.importance_sampling import importance_weights, mismatch, rejection_mask
from rlcli.distributed.collectives import ALONE


def of_ratios(rows: list[list[float]]) -> tuple[Tensor, Tensor]:
    """(trainer, sampler) log-probs; the sampler gave every token probability .1."""
    sampled = torch.full((len(rows), len(rows[0])), math.log(0.1), dtype=torch.float64)
    return sampled + torch.tensor(rows, dtype=torch.float64).log(), sampled


def approx(rows: list[list[float]]) -> list[Any]:
    return [pytest.approx(row, rel=1e-9) for row in rows]


def test_token_weights_are_cut_at_the_cap():
    trainer, sampler = of_ratios([[0.5, 1.5, 4.0, 3.0]])
    mask = torch.tensor([[1, 1, 1, 0]])
    got = importance_weights(trainer, sampler, mask, level="token", cap=2.0)
    assert got.tolist() == approx([[0.5, 1.5, 2.0, 0.0]])


def test_with_a_floor_weights_out_of_bounds_are_zero():
    trainer, sampler = of_ratios([[0.3, 0.6, 1.5, 4.0]])
    got = importance_weights(trainer, sampler, torch.ones(1, 4), level="token", cap=2.0, floor=0.5)
    assert got.tolist() == approx([[0.0, 0.6, 1.5, 0.0]])


def test_sequence_weights_are_products_over_response_tokens():
    trainer, sampler = of_ratios([[0.5, 1.5, 9.0], [4.0, 2.0, 1.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    got = importance_weights(trainer, sampler, mask, level="sequence", cap=5.0)
    assert got.tolist() == approx([[0.75, 0.75, 0.0], [5.0, 5.0, 5.0]])
    got = importance_weights(trainer, sampler, mask, level="sequence", cap=5.0, floor=0.8)
    assert not got.any()


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_weights_survive_any_gap_and_carry_no_gradient(level: Literal["token", "sequence"]):
    trainer = torch.tensor([[0.0, -500.0, math.nan]], requires_grad=True)
    sampler = torch.tensor([[-500.0, 0.0, -math.inf]])
    mask = torch.tensor([[1, 1, 0]])
    got = importance_weights(trainer, sampler, mask, level=level, cap=1e30)
    assert torch.isfinite(got).all()
    assert not got.requires_grad


@pytest.mark.parametrize(
    ("kind", "low", "high", "kept"),
    [
        # Mean sampler / trainer: sqrt(.5 * .5) = .5, 1 and 1 / sqrt(.5 * .25) = 2.83.
        ("seq_k1", 0.6, 2.9, [0, 1, 1]),
        ("seq_k1", 0.4, 2.0, [1, 1, 0]),
        # Mean r - 1 - log r: 1 - ln 2 = .307, 0 and (.5 - 1 + .693 + .25 - 1 + 1.386) / 2 = .415.
        ("seq_k3", 9.0, 0.4, [1, 1, 0]),
        ("seq_k3", 9.0, 0.3, [0, 1, 0]),
    ],
)
def test_rejection(kind: Literal["seq_k1", "seq_k3"], low: float, high: float, kept: list[int]):
    trainer, sampler = of_ratios([[2.0, 2.0, 50.0], [1.0, 1.0, 50.0], [0.5, 0.25, 50.0]])
    mask = torch.tensor([[1, 1, 0]] * 3)
    got = rejection_mask(trainer, sampler, mask, kind=kind, low=low, high=high)
    assert got.tolist() == [[keep, keep, 0] for keep in kept]
    assert got.dtype == mask.dtype


def test_mismatch():
    # Probabilities .05 and .2 against .1: differences .05 and .1.
    trainer, sampler = of_ratios([[0.5, 2.0, 9.0]])
    trainer[0, 2], sampler[0, 2] = math.nan, -math.inf
    got = mismatch(trainer, sampler, torch.tensor([[1, 1, 0]]), all_reduce=ALONE.all_reduce)
    assert got == {
        "prob_diff_mean": pytest.approx(0.075),
        "prob_diff_max": pytest.approx(0.1),
        "logprob_diff_mean": pytest.approx(math.log(2)),
        "logprob_diff_max": pytest.approx(math.log(2)),
        "kl_k3": pytest.approx(((0.5 + math.log(2) - 1) + (2 - math.log(2) - 1)) / 2),
    }


def test_mismatch_of_nothing_is_zero():
    nothing = torch.zeros(0, 3)
    assert set(mismatch(nothing, nothing, nothing, all_reduce=ALONE.all_reduce).values()) == {0.0}
