"""Policy losses and the value loss: one number per token, never reduced.

Every policy loss takes logprobs_BT (with gradient), old_logprobs_BT, advantages_BT and
response_mask_BT. correction_BT multiplies the loss of a token (sampler/trainer weights). Below,
A is the advantage, lr = logprobs - old_logprobs and r = exp(lr). Masked-out tokens get loss 0,
statistics 0 and gradient 0, regardless of their log-probs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlcli.algos.masked_stats import masked_mean
from rlcli.algos.token_loss import log_ratio, surrogates, token_loss
from rlcli.types import TokenLoss

MAX_LOG_RATIO = 20.0
MAX_SEQUENCE_LOG_RATIO = 10.0


def clip(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    correction_BT: Tensor | None = None,
    clip_low: float,
    clip_high: float,
    clip_ratio_c: float,
) -> TokenLoss:
    """max(-A r, -A clip(r, 1 - low, 1 + high)), and at most -A c where A < 0.

    Source: arXiv 1707.06347, eq. 7; the bound c is dual clip, arXiv 1912.09729.
    """
    mask_BT = response_mask_BT != 0
    lr_BT = log_ratio(logprobs_BT, old_logprobs_BT, mask_BT).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    advantages_BT = torch.where(mask_BT, advantages_BT, 0.0)
    ratio_BT = lr_BT.exp()
    plain_BT, clipped_BT = surrogates(ratio_BT, advantages_BT, clip_low, clip_high)
    worst_BT = torch.maximum(plain_BT, clipped_BT)
    bound_BT = -advantages_BT * clip_ratio_c
    loss_BT = torch.where(advantages_BT < 0, torch.minimum(bound_BT, worst_BT), worst_BT)
    return token_loss(
        loss_BT,
        mask_BT,
        correction_BT,
        ratio=ratio_BT,
        approx_kl=-lr_BT,
        clip_frac=clipped_BT > plain_BT,
        clip_frac_lower=(worst_BT > bound_BT) & (advantages_BT < 0),
    )


def gspo(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    correction_BT: Tensor | None = None,
    clip_low: float,
    clip_high: float,
) -> TokenLoss:
    """The clipped loss with s = exp(mean lr of the row) as every token's ratio.

    A token's gradient of s is s times the gradient of its own log-prob, as in GSPO-token.
    log s is at most 10. Source: arXiv 2507.18071.
    """
    mask_BT = response_mask_BT != 0
    lr_BT = log_ratio(logprobs_BT, old_logprobs_BT, mask_BT)
    advantages_BT = torch.where(mask_BT, advantages_BT, 0.0)
    mean_B = lr_BT.detach().sum(dim=1) / mask_BT.sum(dim=1).clamp(min=1)
    straight_through_BT = lr_BT - lr_BT.detach()
    log_ratio_BT = (straight_through_BT + mean_B.unsqueeze(1)).clamp(max=MAX_SEQUENCE_LOG_RATIO)
    ratio_BT = log_ratio_BT.exp()
    plain_BT, clipped_BT = surrogates(ratio_BT, advantages_BT, clip_low, clip_high)
    return token_loss(
        torch.maximum(plain_BT, clipped_BT),
        mask_BT,
        correction_BT,
        ratio=ratio_BT,
        approx_kl=-lr_BT,
        clip_frac=clipped_BT > plain_BT,
    )


def cispo(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    correction_BT: Tensor | None = None,
    clip_low: float,
    clip_high: float,
) -> TokenLoss:
    """-A clip(r, 1 - low, 1 + high) logprob, with no gradient through the clipped ratio.

    Source: arXiv 2506.13585.
    """
    mask_BT = response_mask_BT != 0
    lr_BT = log_ratio(logprobs_BT, old_logprobs_BT, mask_BT).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio_BT = lr_BT.detach().exp()
    weight_BT = ratio_BT.clamp(1 - clip_low, 1 + clip_high)
    kept_logprobs_BT = torch.where(mask_BT, logprobs_BT, 0.0)
    return token_loss(
        -weight_BT * torch.where(mask_BT, advantages_BT, 0.0) * kept_logprobs_BT,
        mask_BT,
        correction_BT,
        ratio=ratio_BT,
        approx_kl=-lr_BT,
        clip_frac=ratio_BT != weight_BT,
    )


def gmpo(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    correction_BT: Tensor | None = None,
    clip_low: float,
    clip_high: float,
) -> TokenLoss:
    """-mean A times the geometric mean of the row's ratios, on every token of the row.

    lr is clipped to [-low, high] only where that lowers A r. With seq_mean_token_mean the
    aggregate is the mean over non-empty rows. The correction is the geometric mean of the row's
    weights. Source: arXiv 2507.20673.
    """
    mask_BT = response_mask_BT != 0
    lr_BT = log_ratio(logprobs_BT, old_logprobs_BT, mask_BT)
    advantages_BT = torch.where(mask_BT, advantages_BT, 0.0)
    bounded_BT = lr_BT.clamp(-clip_low, clip_high)
    sign_BT = advantages_BT.sign()
    kept_BT = sign_BT * torch.minimum(sign_BT * lr_BT, sign_BT * bounded_BT)
    ratio_B = masked_mean(kept_BT, mask_BT, dim=1).exp()
    loss_B = -masked_mean(advantages_BT, mask_BT, dim=1) * ratio_B
    if correction_BT is not None:
        log_weights_BT = (torch.where(mask_BT, correction_BT, 1.0) + 1e-10).log()
        loss_B = loss_B * masked_mean(log_weights_BT, mask_BT, dim=1).exp()
    is_bounded_BT = lr_BT != bounded_BT
    return token_loss(
        loss_B.unsqueeze(1).expand(mask_BT.shape),
        mask_BT,
        None,
        ratio=ratio_B.unsqueeze(1).expand(mask_BT.shape),
        approx_kl=-lr_BT,
        clip_frac=is_bounded_BT & (advantages_BT > 0),
        clip_frac_lower=is_bounded_BT & (advantages_BT < 0),
    )


def sapo(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    correction_BT: Tensor | None = None,
    tau_pos: float,
    tau_neg: float,
) -> TokenLoss:
    """-A sigmoid(tau (r - 1)) 4 / tau, with tau_pos where A > 0 and tau_neg elsewhere.

    Source: arXiv 2511.20347.
    """
    mask_BT = response_mask_BT != 0
    lr_BT = log_ratio(logprobs_BT, old_logprobs_BT, mask_BT).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    advantages_BT = torch.where(mask_BT, advantages_BT, 0.0)
    ratio_BT = lr_BT.exp()
    tau_BT = torch.full_like(advantages_BT, tau_neg).masked_fill(advantages_BT > 0, tau_pos)
    gate_BT = torch.sigmoid(tau_BT * (ratio_BT - 1)) * (4 / tau_BT)
    return token_loss(
        -gate_BT * advantages_BT, mask_BT, correction_BT, ratio=ratio_BT, approx_kl=-lr_BT
    )


def gpg(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    correction_BT: Tensor | None = None,
) -> TokenLoss:
    """-A logprob, the plain policy gradient. Source: arXiv 2504.02546."""
    mask_BT = response_mask_BT != 0
    lr_BT = log_ratio(logprobs_BT, old_logprobs_BT, mask_BT)
    advantages_BT = torch.where(mask_BT, advantages_BT, 0.0)
    return token_loss(
        -advantages_BT * torch.where(mask_BT, logprobs_BT, 0.0),
        mask_BT,
        correction_BT,
        ratio=lr_BT.exp(),
        approx_kl=-lr_BT,
    )


def dro(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    correction_BT: Tensor | None = None,
    dro_beta: float,
) -> TokenLoss:
    """-A logprob + beta / 2 lr^2, for beta > 0. Source: arXiv 2405.19107."""
    mask_BT = response_mask_BT != 0
    lr_BT = log_ratio(logprobs_BT, old_logprobs_BT, mask_BT)
    advantages_BT = torch.where(mask_BT, advantages_BT, 0.0)
    gain_BT = advantages_BT * torch.where(mask_BT, logprobs_BT, 0.0)
    return token_loss(
        0.5 * dro_beta * lr_BT.square() - gain_BT,
        mask_BT,
        correction_BT,
        ratio=lr_BT.exp(),
        approx_kl=-lr_BT,
    )


def dppo_tv(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    correction_BT: Tensor | None = None,
    clip_low: float,
    clip_high: float,
    clip_ratio_c: float,
) -> TokenLoss:
    """-A min(r, c) logprob on tokens whose probability has not moved too far along A.

    Too far: up by more than high if A > 0, otherwise down by more than low. No gradient through
    the weight. Source: arXiv 2602.04879, section 5.4.
    """
    mask_BT = response_mask_BT != 0
    probs_BT = torch.where(mask_BT, logprobs_BT.detach(), 0.0).exp()
    moved_BT = probs_BT - torch.where(mask_BT, old_logprobs_BT, 0.0).exp()
    is_near_BT = torch.where(advantages_BT > 0, moved_BT <= clip_high, moved_BT >= -clip_low)
    return _trust_region_loss(
        logprobs_BT,
        old_logprobs_BT,
        torch.where(mask_BT & is_near_BT, advantages_BT, 0.0),
        mask_BT,
        correction_BT,
        is_near_BT=is_near_BT,
        clip_ratio_c=clip_ratio_c,
    )


def dppo_kl(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    correction_BT: Tensor | None = None,
    clip_low: float,
    clip_high: float,
    clip_ratio_c: float,
) -> TokenLoss:
    """-A min(r, c) logprob on tokens whose binary KL has not grown too far along A.

    Binary KL: KL of the choice "this token or another". No gradient through the weight.
    Source: arXiv 2602.04879, section 5.4.
    """
    mask_BT = response_mask_BT != 0
    current_BT = torch.where(mask_BT, logprobs_BT.detach(), 0.0)
    old_BT = torch.where(mask_BT, old_logprobs_BT, 0.0)
    probs_BT, old_probs_BT = current_BT.exp(), old_BT.exp()
    others_ratio_BT = (1 - old_probs_BT + 1e-8) / (1 - probs_BT + 1e-8)
    kl_BT = old_probs_BT * (old_BT - current_BT) + (1 - old_probs_BT) * others_ratio_BT.log()
    is_near_BT = torch.where(
        advantages_BT > 0,
        (kl_BT <= clip_high) | (probs_BT <= old_probs_BT),
        (kl_BT <= clip_low) | (probs_BT >= old_probs_BT),
    )
    return _trust_region_loss(
        logprobs_BT,
        old_logprobs_BT,
        torch.where(mask_BT & is_near_BT, advantages_BT, 0.0),
        mask_BT,
        correction_BT,
        is_near_BT=is_near_BT,
        clip_ratio_c=clip_ratio_c,
    )


def value_loss(
    values_BT: Tensor,
    old_values_BT: Tensor,
    returns_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    cliprange: float,
) -> TokenLoss:
    """Half the larger squared error of the value and the value clipped to old +- cliprange."""
    mask_BT = response_mask_BT != 0
    values_BT = torch.where(mask_BT, values_BT, 0.0)
    old_values_BT = torch.where(mask_BT, old_values_BT, 0.0)
    returns_BT = torch.where(mask_BT, returns_BT, 0.0)
    capped_BT = torch.minimum(values_BT, old_values_BT + cliprange)
    near_BT = torch.maximum(capped_BT, old_values_BT - cliprange)
    plain_BT, clipped_BT = (values_BT - returns_BT).square(), (near_BT - returns_BT).square()
    return token_loss(
        0.5 * torch.maximum(plain_BT, clipped_BT), mask_BT, None, clip_frac=clipped_BT > plain_BT
    )


def _trust_region_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    kept_advantages_BT: Tensor,
    mask_BT: Tensor,
    correction_BT: Tensor | None,
    *,
    is_near_BT: Tensor,
    clip_ratio_c: float,
) -> TokenLoss:
    lr_BT = log_ratio(logprobs_BT, old_logprobs_BT, mask_BT).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio_BT = lr_BT.detach().exp()
    weight_BT = kept_advantages_BT * ratio_BT.clamp(max=clip_ratio_c)
    return token_loss(
        -weight_BT * torch.where(mask_BT, logprobs_BT, 0.0),
        mask_BT,
        correction_BT,
        ratio=ratio_BT,
        approx_kl=-lr_BT,
        clip_frac=~is_near_BT,
        clip_frac_lower=(ratio_BT > clip_ratio_c) & is_near_BT,
    )
