"""The next token of each row, and its log-prob under the whole distribution."""

from __future__ import annotations

import torch
from torch import Tensor

from rlcli.rollout.base import SamplingParams


def choose_tokens(
    logits_RV: Tensor, uniform_R: Tensor, params: SamplingParams
) -> tuple[Tensor, Tensor]:
    """(token_R, logprob_R). Log-probs are those of logits / temperature before any cut.

    uniform_R: one number in [0, 1) per row; the same numbers give the same tokens. Greedy
    (temperature 0) takes the likeliest token and reports its log-prob at temperature 1.
    """
    if params.temperature == 0:
        logprobs_RV = logits_RV.log_softmax(-1)
        logprob_R, token_R = logprobs_RV.max(-1)
        return token_R, logprob_R
    logprobs_RV = (logits_RV / params.temperature).log_softmax(-1)
    token_R = _draw(_cut(logprobs_RV, params).exp(), uniform_R)
    return token_R, logprobs_RV.gather(1, token_R[:, None])[:, 0]


def _draw(weights_RV: Tensor, uniform_R: Tensor) -> Tensor:
    """Inverse of the cumulative weights at uniform_R; a token of weight 0 is never drawn."""
    cumulative = weights_RV.cumsum(-1)
    total = cumulative[:, -1:]
    point = (1.0 - uniform_R[:, None]) * total  # in (0, total]: never below the first weight
    return torch.searchsorted(cumulative, point)[:, 0].clamp(max=weights_RV.shape[1] - 1)


def _cut(logprobs_RV: Tensor, params: SamplingParams) -> Tensor:
    """Log-probs with everything outside top_k and top_p at minus infinity."""
    cut = logprobs_RV
    if 0 < params.top_k < cut.shape[1]:
        smallest = cut.topk(params.top_k, dim=-1).values[:, -1:]
        cut = cut.masked_fill(cut < smallest, float("-inf"))
    if params.top_p < 1.0:
        ordered, index = cut.sort(-1, descending=True)
        probs = ordered.softmax(-1)
        before = probs.cumsum(-1) - probs
        drop = torch.zeros_like(cut, dtype=torch.bool).scatter(1, index, before >= params.top_p)
        cut = cut.masked_fill(drop, float("-inf"))
    return cut
