"""Drawing tokens."""

from __future__ import annotations

import torch

from rlcli.rollout.base import SamplingParams
from rlcli.rollout.sample_token import choose_tokens

LOGITS = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()[None]


def drawn(params: SamplingParams, num: int = 4000) -> torch.Tensor:
    uniform = (torch.arange(num) + 0.5) / num
    tokens, _ = choose_tokens(LOGITS.expand(num, -1), uniform, params)
    return torch.bincount(tokens, minlength=4) / num


def test_draws_follow_the_distribution() -> None:
    expected = torch.tensor([0.5, 0.3, 0.15, 0.05])
    torch.testing.assert_close(
        drawn(SamplingParams(n=1, max_tokens=1)), expected, atol=1e-3, rtol=0
    )


def test_temperature_two_takes_the_square_root_of_probabilities() -> None:
    expected = torch.tensor([0.5, 0.3, 0.15, 0.05]).sqrt()
    params = SamplingParams(n=1, max_tokens=1, temperature=2.0)
    torch.testing.assert_close(drawn(params), expected / expected.sum(), atol=1e-3, rtol=0)


def test_top_k_keeps_the_k_likeliest() -> None:
    params = SamplingParams(n=1, max_tokens=1, top_k=2)
    expected = torch.tensor([0.625, 0.375, 0.0, 0.0])
    torch.testing.assert_close(drawn(params), expected, atol=1e-3, rtol=0)


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    params = SamplingParams(n=1, max_tokens=1, top_p=0.7)
    expected = torch.tensor([0.625, 0.375, 0.0, 0.0])
    torch.testing.assert_close(drawn(params), expected, atol=1e-3, rtol=0)


def test_logprobs_are_those_before_the_cut() -> None:
    params = SamplingParams(n=1, max_tokens=1, top_k=1)
    tokens, logprobs = choose_tokens(LOGITS, torch.tensor([0.3]), params)
    assert tokens.item() == 0
    torch.testing.assert_close(logprobs, torch.tensor([0.5]).log())


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    uniform = torch.tensor([0.0, 1e-7, 0.5, 0.9999999])
    params = SamplingParams(n=1, max_tokens=1)
    tokens, _ = choose_tokens(logits.expand(4, -1), uniform, params)
    assert set(tokens.tolist()) <= {1, 3}
