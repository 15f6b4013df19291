from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlcli.algos.aggregation import aggregate, count
from rlcli.config.schema import Aggregation

MODES: tuple[Aggregation, ...] = get_args(Aggregation)
# Row sums 6 and 4 over 3 and 1 tokens, and a row that is empty.
VALUES = torch.tensor([[1.0, 2.0, 3.0], [4.0, 90.0, 90.0], [70.0, 70.0, torch.nan]])
MASK = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]])


def test_count_leaves_empty_rows_out():
    num_tokens, num_sequences = count(MASK)
    assert (int(num_tokens), int(num_sequences)) == (4, 2)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("token_mean", 10 / 4),
        ("token_sum", 10.0),
        ("seq_mean_token_sum", (6 + 4) / 2),
        ("seq_mean_token_mean", (2 + 4) / 2),
        ("seq_mean_token_sum_norm", (6 + 4) / 2 / 5),
    ],
)
def test_aggregation_by_hand(mode: Aggregation, expected: float):
    num_tokens, num_sequences = count(MASK)
    got = aggregate(
        VALUES, MASK, mode, num_tokens=num_tokens, num_sequences=num_sequences, scale_factor=5.0
    )
    assert got.item() == pytest.approx(expected)


@pytest.mark.parametrize("mode", MODES)
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1))
def test_micro_batches_add_up_to_the_whole(mode: Aggregation, seed: int):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(9, 6, generator=generator, dtype=torch.float64)
    mask = torch.rand(9, 6, generator=generator) < torch.rand(9, 1, generator=generator)
    sizes = [2, 0, 1, 4, 2]
    counts = [count(part) for part in mask.split(sizes)]
    num_tokens = sum(int(tokens) for tokens, _ in counts)
    num_sequences = sum(int(sequences) for _, sequences in counts)
    shares = [
        aggregate(
            part_values,
            part_mask,
            mode,
            num_tokens=num_tokens,
            num_sequences=num_sequences,
            scale_factor=6.0,
        ).item()
        for part_values, part_mask in zip(values.split(sizes), mask.split(sizes), strict=True)
    ]
    whole = aggregate(
        values,
        mask,
        mode,
        num_tokens=torch.tensor(num_tokens),
        num_sequences=torch.tensor(num_sequences),
        scale_factor=6.0,
    )
    assert sum(shares) == pytest.approx(whole.item(), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("as_tensor", [True, False])
def test_nothing_to_count_gives_zero(mode: Aggregation, as_tensor: bool):
    zero = torch.tensor(0) if as_tensor else 0
    got = aggregate(
        VALUES, torch.zeros(3, 3), mode, num_tokens=zero, num_sequences=zero, scale_factor=1.0
    )
    assert got.item() == 0.0


@pytest.mark.parametrize("mode", MODES)
def test_masked_tokens_get_no_gradient(mode: Aggregation):
    values = VALUES.clone().requires_grad_()
    aggregate(values, MASK, mode, num_tokens=4, num_sequences=2, scale_factor=1.0).backward()
    assert values.grad is not None
    assert not values.grad[MASK == 0].any()
    assert (values.grad[MASK == 1] > 0).all()
