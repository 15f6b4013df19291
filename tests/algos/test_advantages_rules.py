"""What holds for every estimator, on random batches with holes, empty rows, ties and zeros."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlcli.algos.masked_stats import left_align
from rlcli.algos.registry import ESTIMATORS
from rlcli.types import Advantages, AllReduce

NAMES = list(ESTIMATORS)
GROUP_NAMES = [name for name, entry in ESTIMATORS.items() if "group_B" in entry.inputs]
SETTINGS: dict[str, Any] = {"gamma": 0.9, "gamma_turn": 1.0, "lam": 0.8, "scale_by_std": True}
Data = dict[str, Any]
Test = Callable[..., None]
every_estimator = pytest.mark.parametrize("name", NAMES)
every_group_estimator = pytest.mark.parametrize("name", GROUP_NAMES)


def on_random_batches(test: Test) -> Test:
    return settings(deadline=None, max_examples=25)(given(seed=st.integers(0, 2**32 - 1))(test))


def on_ranks(num_ranks: int, work: Callable[[int, AllReduce], Tensor]) -> list[Tensor]:
    """What `work(rank, all_reduce)` returns on every rank; ranks are threads."""
    barrier = Barrier(num_ranks, timeout=60)
    shares: dict[int, Tensor] = {}

    def on_rank(rank: int) -> Tensor:
        def all_reduce(values: Tensor, /) -> Tensor:
            shares[rank] = values
            barrier.wait()
            total = torch.stack([shares[r] for r in range(num_ranks)]).sum(dim=0)
            barrier.wait()
            return total

        return work(rank, all_reduce)

    with ThreadPoolExecutor(num_ranks) as pool:
        return list(pool.map(on_rank, range(num_ranks)))


def alone(values: Tensor, /) -> Tensor:
    return values


def random_batch(seed: int, *, num_groups: int = 3, n: int = 4, length: int = 5) -> Data:
    generator = torch.Generator().manual_seed(seed)
    rows = num_groups * n

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def chance(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    lengths = torch.randint(0, length + 1, (rows, 1), generator=generator)
    mask = (torch.arange(length) < lengths) & (chance(rows, length) < 0.8)
    mask[:2, 0] = True
    scores = normal(rows) if seed % 2 else (normal(rows) > 0).double() / 4
    rewards = torch.zeros(rows, length, dtype=torch.float64)
    rewards[torch.arange(rows), (mask * torch.arange(length)).amax(dim=1)] = scores
    logprobs = normal(rows, length, 6).log_softmax(dim=2)
    return {
        "token_rewards_BT": rewards,
        "response_mask_BT": mask.double(),
        "group_B": torch.arange(num_groups).repeat_interleave(n),
        "valid_B": torch.ones(rows, dtype=torch.float64),
        "values_BT": normal(rows, length),
        "baseline_B": normal(rows),
        "old_logprobs_BT": logprobs[:, :, 0],
        "sum_pi_squared_BT": logprobs.exp().square().sum(dim=2),
        "parts": {"a": normal(rows), "b": scores},
        "part_weights": {"a": 0.5},
        "earned_BT": None,
    }


def pick(batch: Data, rows: Tensor) -> Data:
    def of_rows(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: v[rows] if isinstance(v, Tensor) else v for k, v in value.items()}
        return None if value is None else value[rows]

    return {name: of_rows(value) for name, value in batch.items()}


def estimate(name: str, batch: Data, all_reduce: AllReduce = alone) -> Advantages:
    entry = ESTIMATORS[name]
    module, _, function = entry.path.partition(":")
    run: Callable[..., Advantages] = getattr(importlib.import_module(module), function)
    inputs = {"all_reduce": all_reduce, **batch}
    return run(
        batch["token_rewards_BT"],
        batch["response_mask_BT"],
        **{key: inputs[key] for key in entry.inputs},
        **{key: SETTINGS[key] for key in entry.settings},
    )


def assert_close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@every_estimator
@on_random_batches
def test_advantages_are_zero_where_the_mask_is_zero(name: str, seed: int):
    batch = random_batch(seed)
    got = estimate(name, batch)
    outside = batch["response_mask_BT"] == 0
    assert not got.advantages_BT[outside].any()
    assert got.returns_BT is None or not got.returns_BT[outside].any()


@every_estimator
@on_random_batches
def test_the_order_of_rows_does_not_matter(name: str, seed: int):
    batch = random_batch(seed)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    expected = estimate(name, batch).advantages_BT[order]
    assert_close(estimate(name, pick(batch, order)).advantages_BT, expected)


@every_estimator
@on_random_batches
def test_rows_that_are_not_valid_get_zero_and_have_no_influence(name: str, seed: int):
    batch = random_batch(seed)
    keep = torch.rand(12, generator=torch.Generator().manual_seed(seed)) < 0.7
    keep[0] = True
    batch["valid_B"] = keep.double()
    for key in ("token_rewards_BT", "values_BT", "old_logprobs_BT", "baseline_B"):
        batch[key][~keep] = torch.nan
    for part in batch["parts"].values():
        part[~keep] = torch.nan
    got = estimate(name, batch).advantages_BT
    assert not got[~keep].any()
    assert_close(got[keep], estimate(name, pick(batch, keep.nonzero()[:, 0])).advantages_BT)


@every_estimator
@on_random_batches
def test_shards_equal_the_whole(name: str, seed: int):
    batch = random_batch(seed)
    shards = [pick(batch, batch["group_B"] == g) for g in range(3)]

    def work(rank: int, all_reduce: AllReduce) -> Tensor:
        return estimate(name, shards[rank], all_reduce).advantages_BT

    assert_close(torch.cat(on_ranks(3, work)), estimate(name, batch).advantages_BT)


@every_estimator
@on_random_batches
def test_holes_in_the_mask_are_as_if_they_were_not_there(name: str, seed: int):
    batch = random_batch(seed)
    mask = batch["response_mask_BT"]
    closed = dict(batch)
    for key in ("token_rewards_BT", "values_BT", "old_logprobs_BT", "sum_pi_squared_BT"):
        closed[key] = left_align(batch[key], mask)
    # A row without response tokens has its score on no token: both sides leave it there.
    empty = mask.sum(dim=1) == 0
    closed["token_rewards_BT"][empty] = batch["token_rewards_BT"][empty]
    closed["response_mask_BT"] = left_align(mask, mask)
    got = left_align(estimate(name, batch).advantages_BT, mask)
    assert_close(got, estimate(name, closed).advantages_BT)


@every_estimator
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_of_the_rewards_is_kept(name: str, dtype: torch.dtype):
    batch = {k: v.to(dtype) if isinstance(v, Tensor) else v for k, v in random_batch(3).items()}
    batch["group_B"] = batch["group_B"].long()
    got = estimate(name, batch).advantages_BT
    assert got.dtype == dtype
    torch.testing.assert_close(
        got.double(), estimate(name, random_batch(3)).advantages_BT, rtol=1e-4, atol=1e-5
    )


@every_estimator
@pytest.mark.parametrize("num_masked_in", [0, 1])
def test_fewer_than_two_tokens_give_no_nan(name: str, num_masked_in: int):
    batch = random_batch(1)
    batch["response_mask_BT"] = torch.zeros(12, 5, dtype=torch.float64)
    batch["response_mask_BT"][0, :num_masked_in] = 1.0
    assert torch.isfinite(estimate(name, batch).advantages_BT).all()


@every_estimator
def test_a_rank_without_rows_takes_part(name: str):
    batch = random_batch(5)
    shards = [batch, pick(batch, torch.zeros(0, dtype=torch.long))]

    def work(rank: int, all_reduce: AllReduce) -> Tensor:
        return estimate(name, shards[rank], all_reduce).advantages_BT

    whole, nothing = on_ranks(2, work)
    assert nothing.shape == (0, 5)
    assert_close(whole, estimate(name, batch).advantages_BT)


@every_group_estimator
@on_random_batches
def test_the_only_valid_row_of_a_group_gets_zero(name: str, seed: int):
    batch = random_batch(seed)
    batch["valid_B"][1:4] = 0.0
    got = estimate(name, batch).advantages_BT
    assert not got[:4].any()
    without = pick(batch, torch.arange(4, 12))
    if name != "gpg":  # the lone row still counts among gpg's valid rollouts and scores
        assert_close(got[4:], estimate(name, without).advantages_BT)


@pytest.mark.parametrize("name", ["grpo", "rloo", "gpg"])
@on_random_batches
def test_the_advantages_of_a_group_sum_to_zero(name: str, seed: int):
    batch = random_batch(seed)
    batch["response_mask_BT"][:, 0] = 1.0
    first_B = estimate(name, batch).advantages_BT[:, 0]
    assert_close(first_B.reshape(3, 4).sum(dim=1), torch.zeros(3, dtype=torch.float64))


@on_random_batches
def test_opo_token_advantages_of_a_group_sum_to_zero(seed: int):
    batch = random_batch(seed)
    batch["response_mask_BT"][:, 0] = 1.0
    totals = estimate("opo", batch).advantages_BT.sum(dim=1).reshape(3, 4).sum(dim=1)
    assert_close(totals, torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("name", ["gae", "reinforce_plus_plus", "remax"])
@on_random_batches
def test_rewards_on_masked_tokens_are_not_read(name: str, seed: int):
    batch = random_batch(seed)
    expected = estimate(name, batch).advantages_BT
    batch["token_rewards_BT"][batch["response_mask_BT"] == 0] += 7.0
    assert_close(estimate(name, batch).advantages_BT, expected)


@pytest.mark.parametrize("name", ["grpo", "grpo_passk", "rloo", "opo", "gpg"])
@on_random_batches
def test_scores_count_wherever_in_the_row_they_are(name: str, seed: int):
    batch = random_batch(seed)
    expected = estimate(name, batch).advantages_BT
    batch["token_rewards_BT"] = batch["token_rewards_BT"].roll(1, dims=1)
    assert_close(estimate(name, batch).advantages_BT, expected)
