"""Losses that treat the tokens with the highest covariance apart, and how those are picked.

The covariance of a token is (A - mean A) (logprob - mean logprob): where it is high, the update
costs the most entropy. Tokens are picked once per mini-batch, over all its tokens, so that the
size of the micro-batches does not matter. Source: arXiv 2505.22617.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlcli.algos.masked import MEAN_EPS
from rlcli.algos.token_loss import log_ratio, surrogates, token_loss
from rlcli.types import TokenLoss


def clip_cov(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    correction_BT: Tensor | None = None,
    selected_BT: Tensor,
    clip_low: float,
    clip_high: float,
) -> TokenLoss:
    """max(-A r, -A clip(r, 1 - low, 1 + high)) on all tokens but the selected ones."""
    mask_BT = response_mask_BT != 0
    lr_BT = log_ratio(logprobs_BT, old_logprobs_BT, mask_BT)
    advantages_BT = torch.where(mask_BT, advantages_BT, 0.0)
    ratio_BT = lr_BT.exp()
    plain_BT, clipped_BT = surrogates(ratio_BT, advantages_BT, clip_low, clip_high)
    return token_loss(
        torch.where(selected_BT, 0.0, torch.maximum(plain_BT, clipped_BT)),
        mask_BT,
        correction_BT,
        ratio=ratio_BT,
        approx_kl=-lr_BT,
        clip_frac=selected_BT,
    )


def select_clip_cov(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    generator: torch.Generator,
    clip_low: float,
    clip_high: float,
    clip_cov_ratio: float,
    clip_cov_low: float,
    clip_cov_high: float,
) -> Tensor:
    """[B, T] bool: random tokens among those whose covariance is strictly within the band.

    clip_cov_ratio of all response tokens, one at least, as far as there are candidates; a token
    that the ratio clip changes is none.
    """
    tokens = (response_mask_BT != 0).flatten().nonzero()[:, 0]
    logprobs_N, old_N, advantages_N = (
        values_BT.detach().flatten()[tokens]
        for values_BT in (logprobs_BT, old_logprobs_BT, advantages_BT)
    )
    ratio_N = (logprobs_N - old_N).exp()
    plain_N, clipped_N = surrogates(ratio_N, advantages_N, clip_low, clip_high)
    covariance_N = _covariance(logprobs_N, advantages_N, eps=MEAN_EPS)
    is_in_band_N = (covariance_N > clip_cov_low) & (covariance_N < clip_cov_high)
    candidates = tokens[is_in_band_N & ~(clipped_N > plain_N)]
    order = torch.randperm(len(candidates), generator=generator, device=generator.device)
    chosen = order[: max(int(clip_cov_ratio * len(tokens)), 1)]
    return _is_one_of(candidates[chosen.to(candidates.device)], response_mask_BT)


def kl_cov(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    correction_BT: Tensor | None = None,
    selected_BT: Tensor,
    kl_cov_coef: float,
) -> TokenLoss:
    """-A r on all tokens, plus kl_cov_coef |lr| on the selected ones."""
    mask_BT = response_mask_BT != 0
    lr_BT = log_ratio(logprobs_BT, old_logprobs_BT, mask_BT)
    ratio_BT = lr_BT.exp()
    loss_BT = -torch.where(mask_BT, advantages_BT, 0.0) * ratio_BT
    return token_loss(
        torch.where(selected_BT, loss_BT + kl_cov_coef * lr_BT.abs(), loss_BT),
        mask_BT,
        correction_BT,
        ratio=ratio_BT,
        approx_kl=-lr_BT,
        clip_frac=selected_BT,
    )


def select_kl_cov(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    kl_cov_ratio: float,
) -> Tensor:
    """[B, T] bool: the kl_cov_ratio of tokens with the highest covariance, one at least."""
    tokens = (response_mask_BT != 0).flatten().nonzero()[:, 0]
    covariance_N = _covariance(
        logprobs_BT.detach().flatten()[tokens], advantages_BT.detach().flatten()[tokens], eps=0.0
    )
    num_selected = min(max(int(len(tokens) * kl_cov_ratio), 1), len(tokens))
    return _is_one_of(tokens[covariance_N.topk(num_selected).indices], response_mask_BT)


def _covariance(logprobs_N: Tensor, advantages_N: Tensor, *, eps: float) -> Tensor:
    # eps as in verl 0.9.1: equal advantages are never ranked, but can be in a band that ends at 0.
    count = len(advantages_N) + eps
    centred_N = advantages_N - advantages_N.sum() / count
    return centred_N * (logprobs_N - logprobs_N.sum() / count)


def _is_one_of(tokens: Tensor, response_mask_BT: Tensor) -> Tensor:
    selected = torch.zeros(response_mask_BT.numel(), dtype=torch.bool, device=tokens.device)
    selected[tokens] = True
    return selected.view(response_mask_BT.shape)
