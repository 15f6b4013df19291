"""Losses that treat high-covariance tokens specially, and the selection of these tokens.

The covariance of a token is (A - mean A) (logprob - mean logprob). If it is high, the update
costs much entropy. Tokens are selected once per mini-batch, over all its tokens, so the
micro-batch size does not matter. Source: arXiv 2505.22617.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlcli.algos.masked_stats import MEAN_EPS, gather_alone
from rlcli.algos.token_loss import log_ratio, surrogates, token_loss
from rlcli.types import Gather, TokenLoss


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
    """max(-A r, -A clip(r, 1 - low, 1 + high)) on all tokens except the selected ones."""
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
    draws_BT: Tensor | None = None,
    gather: Gather = gather_alone,
    clip_low: float,
    clip_high: float,
    clip_cov_ratio: float,
    clip_cov_low: float,
    clip_cov_high: float,
) -> Tensor:
    """[B, T] bool: random tokens among those whose covariance is strictly within the band.

    Selects clip_cov_ratio of all response tokens, at least one, if there are enough candidates;
    tokens changed by the ratio clip are not candidates. draws_BT: random numbers, drawn here if
    None; candidates with the largest draws are selected. gather: joins the ranks' mini-batches.
    """
    draws_BT = torch.rand_like(logprobs_BT) if draws_BT is None else draws_BT
    tokens = (response_mask_BT != 0).flatten().nonzero()[:, 0]
    logprobs_N, old_N, advantages_N, draws_N = (
        values_BT.detach().flatten()[tokens]
        for values_BT in (logprobs_BT, old_logprobs_BT, advantages_BT, draws_BT)
    )
    ratio_N = (logprobs_N - old_N).exp()
    plain_N, clipped_N = surrogates(ratio_N, advantages_N, clip_low, clip_high)
    covariance_N, num_tokens = _covariance(logprobs_N, advantages_N, gather, eps=MEAN_EPS)
    is_in_band_N = (covariance_N > clip_cov_low) & (covariance_N < clip_cov_high)
    is_candidate_N = is_in_band_N & ~(clipped_N > plain_N)
    count = max(int(clip_cov_ratio * num_tokens), 1)
    drawn = draws_N[is_candidate_N]
    selected = _largest(drawn, drawn, count, gather)
    return _is_one_of(tokens[is_candidate_N][selected], response_mask_BT)


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
    draws_BT: Tensor | None = None,
    gather: Gather = gather_alone,
    kl_cov_ratio: float,
) -> Tensor:
    """[B, T] bool: the share kl_cov_ratio of tokens with the highest covariance, at least one.

    draws_BT: random numbers that break ties, drawn here if None. gather: joins the ranks'
    mini-batches.
    """
    draws_BT = torch.rand_like(logprobs_BT) if draws_BT is None else draws_BT
    tokens = (response_mask_BT != 0).flatten().nonzero()[:, 0]
    logprobs_N, advantages_N, draws_N = (
        values_BT.detach().flatten()[tokens] for values_BT in (logprobs_BT, advantages_BT, draws_BT)
    )
    covariance_N, num_tokens = _covariance(logprobs_N, advantages_N, gather, eps=0.0)
    count = max(int(num_tokens * kl_cov_ratio), 1)
    selected = _largest(covariance_N, draws_N, count, gather)
    return _is_one_of(tokens[selected], response_mask_BT)


def _covariance(
    logprobs_N: Tensor, advantages_N: Tensor, gather: Gather, *, eps: float
) -> tuple[Tensor, int]:
    """(covariance of this rank's tokens, tokens of all ranks)."""
    # eps as in verl 0.9.1: equal advantages have no rank, but can be in a band that ends at 0.
    count = torch.ones_like(logprobs_N).sum()
    sums, _ = gather(torch.stack([count, advantages_N.sum(), logprobs_N.sum()]))
    num_tokens, advantages, logprobs = torch.stack(sums).sum(0)
    count = (num_tokens + eps).clamp(min=MEAN_EPS)
    covariance_N = (advantages_N - advantages / count) * (logprobs_N - logprobs / count)
    return covariance_N, int(num_tokens)


def _largest(values_N: Tensor, draws_N: Tensor, count: int, gather: Gather) -> Tensor:
    """Indices of this rank's values that are among the `count` largest of all ranks.

    Ties are broken by the largest draws.
    """
    own = _in_order(values_N, draws_N)[:count]
    all_ranks, rank = gather(torch.stack([values_N[own], draws_N[own]], dim=1))
    selected = _in_order(*torch.cat(all_ranks).T)[:count]
    selected = selected - sum(map(len, all_ranks[:rank]))
    return own[selected[(selected >= 0) & (selected < len(own))]]


def _in_order(values_N: Tensor, draws_N: Tensor) -> Tensor:
    """Indices from the largest to the smallest value; ties are ordered by draws."""
    by_draw = draws_N.argsort(descending=True)
    return by_draw[values_N[by_draw].argsort(descending=True, stable=True)]


def _is_one_of(tokens: Tensor, response_mask_BT: Tensor) -> Tensor:
    selected = torch.zeros(response_mask_BT.numel(), dtype=torch.bool, device=tokens.device)
    selected[tokens] = True
    return selected.view(response_mask_BT.shape)
