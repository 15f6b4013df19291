from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rlcli.algos.covariance import clip_cov, kl_cov, select_clip_cov, select_kl_cov

# Advantages have mean 0, log-probs mean -3.5: covariances 7.5, 1.5, -.5, 13.5.
ADVANTAGES = torch.tensor([[3.0, 1.0], [-1.0, -3.0]])
LOGPROBS = torch.tensor([[-1.0, -2.0], [-3.0, -8.0]])
MASK = torch.ones(2, 2)


def select_in_band(low: float, high: float, **changes: Any) -> list[list[bool]]:
    arguments: dict[str, Any] = {
        "old": LOGPROBS,
        "mask": MASK,
        "ratio": 1.0,
        "seed": 0,
        **changes,
    }
    return select_clip_cov(
        LOGPROBS,
        arguments["old"],
        ADVANTAGES,
        arguments["mask"],
        draws_BT=torch.rand(2, 2, generator=torch.Generator().manual_seed(arguments["seed"])),
        clip_low=0.2,
        clip_high=0.2,
        clip_cov_ratio=arguments["ratio"],
        clip_cov_low=low,
        clip_cov_high=high,
    ).tolist()


def test_clip_cov_selects_within_the_band():
    assert select_in_band(1.0, 5.0) == [[False, True], [False, False]]
    assert select_in_band(1.0, 8.0) == [[True, True], [False, False]]
    assert select_in_band(20.0, 30.0) == [[False, False], [False, False]]


def test_clip_cov_selects_a_share_of_all_tokens_at_random():
    picks = [select_in_band(1.0, 8.0, ratio=0.25, seed=seed) for seed in range(20)]
    assert [[True, False], [False, False]] in picks
    assert [[False, True], [False, False]] in picks
    assert all(sum(map(sum, pick)) == 1 for pick in picks)
    assert picks == [select_in_band(1.0, 8.0, ratio=0.25, seed=seed) for seed in range(20)]


def test_clip_cov_selects_one_token_at_least():
    assert select_in_band(1.0, 5.0, ratio=1e-6) == [[False, True], [False, False]]


def test_clip_cov_does_not_select_what_the_ratio_clips():
    old = LOGPROBS.clone()
    old[0, 1] -= 1.0  # A > 0 and the ratio is e
    assert select_in_band(1.0, 8.0, old=old) == [[True, False], [False, False]]


def test_selections_do_not_read_masked_tokens():
    # Without the last token: advantages less 1, log-probs plus 2: covariances 2, 0, 2.
    mask = torch.tensor([[1, 1], [1, 0]])
    assert select_in_band(1.0, 5.0, mask=mask) == [[True, False], [True, False]]
    advantages, logprobs = ADVANTAGES.clone(), LOGPROBS.clone()
    advantages[1, 1], logprobs[1, 1] = math.nan, -math.inf
    got = select_kl_cov(logprobs, LOGPROBS, advantages, mask, draws_BT=MASK, kl_cov_ratio=0.7)
    assert got.tolist() == [[True, False], [True, False]]


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (0.001, [[False, False], [False, True]]),
        (0.25, [[False, False], [False, True]]),
        (0.5, [[True, False], [False, True]]),
        (1.0, [[True, True], [True, True]]),
    ],
)
def test_kl_cov_selects_the_highest_covariances(ratio: float, expected: list[list[bool]]):
    more: dict[str, Any] = {"draws_BT": MASK, "kl_cov_ratio": ratio}
    got = select_kl_cov(LOGPROBS, LOGPROBS, ADVANTAGES, MASK, **more)
    assert got.tolist() == expected


def test_without_tokens_nothing_is_selected():
    nothing = torch.zeros(2, 2)
    assert not any(map(any, select_in_band(-10.0, 20.0, mask=nothing)))
    more: dict[str, Any] = {"draws_BT": MASK, "kl_cov_ratio": 0.5}
    assert not select_kl_cov(LOGPROBS, LOGPROBS, ADVANTAGES, nothing, **more).any()


def one_row(ratios: list[float]) -> tuple[Tensor, Tensor]:
    old = torch.full((1, len(ratios)), -2.0, dtype=torch.float64)
    return old + torch.tensor([ratios], dtype=torch.float64).log(), old


def test_clip_cov_cuts_the_selected_tokens_out():
    new, old = one_row([1.5, 1.5, 1.5, 4.0])
    advantages = torch.tensor([[2.0, 2.0, -2.0, -1.0]])
    selected = torch.tensor([[True, False, False, False]])
    got = clip_cov(
        new, old, advantages, torch.ones(1, 4), selected_BT=selected, clip_low=0.2, clip_high=0.2
    )
    assert got.loss_BT.tolist() == [pytest.approx([0.0, -2.4, 3.0, 4.0])]
    assert got.stats_BT["clip_frac"].tolist() == [[1, 0, 0, 0]]


def test_kl_cov_penalises_the_selected_tokens():
    new, old = one_row([1.5, 1.5, 0.5])
    selected = torch.tensor([[True, False, True]])
    got = kl_cov(
        new, old, torch.ones(1, 3), torch.ones(1, 3), selected_BT=selected, kl_cov_coef=2.0
    )
    expected = [-1.5 + 2 * math.log(1.5), -1.5, -0.5 + 2 * math.log(2)]
    assert got.loss_BT.tolist() == [pytest.approx(expected)]
