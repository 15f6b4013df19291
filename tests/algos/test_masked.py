from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlcli.algos.masked_stats import build_groups, left_align, masked_mean, undo_left_align, whiten

SEEDS = st.integers(0, 2**32 - 1)


def alone(values: torch.Tensor, /) -> torch.Tensor:
    return values


def test_masked_mean_reads_masked_in_tokens_only():
    values = torch.tensor([[1.0, math.nan, 5.0], [3.0, 7.0, math.inf]])
    mask = torch.tensor([[1, 0, 1], [1, 1, 0]])
    assert masked_mean(values, mask).item() == 4.0
    assert masked_mean(values, mask, dim=1).tolist() == [3.0, 5.0]


def test_masked_mean_of_nothing_is_zero():
    assert masked_mean(torch.ones(2, 3), torch.zeros(2, 3)).item() == 0.0


def test_whitening_by_hand():
    values = torch.tensor([[1.0, 2.0], [6.0, 100.0]], dtype=torch.float64)
    mask = torch.tensor([[1, 1], [1, 0]])
    scale = 1 / math.sqrt(7 + 1e-8)
    expected = [[-2 * scale, -1 * scale], [3 * scale, 0.0]]
    got = whiten(values, mask, all_reduce=alone)
    assert got.tolist() == [pytest.approx(row, rel=1e-7) for row in expected]


@pytest.mark.parametrize("mask", [[[0, 0]], [[0, 1]]])
def test_whitening_fewer_than_two_tokens_gives_zero(mask: list[list[int]]):
    got = whiten(torch.tensor([[3.0, 4.0]]), torch.tensor(mask), all_reduce=alone)
    assert got.tolist() == [[0.0, 0.0]]


def test_whitening_keeps_small_spreads_on_a_large_mean():
    values = 4096 + torch.tensor([[-1.0, 0.0, 1.0]])
    got = whiten(values, torch.ones(1, 3), all_reduce=alone)
    assert got.tolist() == [pytest.approx([-1.0, 0.0, 1.0], abs=1e-6)]


@settings(deadline=None, max_examples=50)
@given(SEEDS)
def test_whitened_tokens_have_mean_zero_and_variance_one(seed: int):
    generator = torch.Generator().manual_seed(seed)
    values = 5 + 3 * torch.randn(4, 6, generator=generator, dtype=torch.float64)
    mask = torch.rand(4, 6, generator=generator) < 0.7
    mask[0, :2] = True
    kept = whiten(values, mask, all_reduce=alone)[mask]
    assert kept.mean().item() == pytest.approx(0.0, abs=1e-6)
    assert kept.var().item() == pytest.approx(1.0, rel=1e-6)


@settings(deadline=None, max_examples=50)
@given(SEEDS)
def test_left_align_can_be_undone(seed: int):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(3, 7, generator=generator)
    mask = torch.rand(3, 7, generator=generator) < 0.5
    aligned = left_align(values, mask)
    for row in range(3):
        kept = values[row][mask[row]]
        assert aligned[row].tolist() == [*kept.tolist(), *[0.0] * (7 - len(kept))]
    assert torch.equal(undo_left_align(aligned, mask), torch.where(mask, values, 0.0))


def test_group_statistics_by_hand():
    group = torch.tensor([4, 1, 4, 1, 4])
    valid = torch.tensor([1, 1, 1, 0, 1])
    values = torch.tensor([1.0, 5.0, 2.0, math.nan, 6.0])
    groups = build_groups(group, valid)
    assert groups.count_B.tolist() == [3, 1, 3, 1, 3]
    assert groups.active_B.tolist() == [True, False, True, False, True]
    assert groups.sum(values).tolist() == [9.0, 5.0, 9.0, 5.0, 9.0]
    assert groups.mean(values)[0].item() == 3.0
    assert groups.std(torch.nan_to_num(values)).tolist()[:2] == pytest.approx([math.sqrt(7), 0.0])
    assert groups.largest(values).tolist()[:2] == [[6.0, 2.0], [5.0, -math.inf]]


def test_group_sum_keeps_trailing_dimensions():
    groups = build_groups(torch.tensor([0, 1, 0]), torch.ones(3))
    got = groups.sum(torch.tensor([[1.0, 2.0], [10.0, 20.0], [3.0, 4.0]]))
    assert got.tolist() == [[4.0, 6.0], [10.0, 20.0], [4.0, 6.0]]


def test_no_rows_make_no_groups():
    groups = build_groups(torch.zeros(0, dtype=torch.long), torch.zeros(0))
    assert groups.sum(torch.zeros(0)).shape == (0,)
