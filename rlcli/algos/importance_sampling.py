"""Correct for differences between the sampler's and the trainer's log-probs.

logprobs_BT are the trainer's, with the sampler's weights; rollout_logprobs_BT are the sampler's.
Importance weights and rejection follow verl's rollout correction.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from rlcli.algos.masked_stats import alone, global_means, masked_mean
from rlcli.algos.token_loss import log_ratio
from rlcli.types import AllReduce

MAX_LOG_RATIO = 20.0


def importance_weights(
    logprobs_BT: Tensor,
    rollout_logprobs_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    level: Literal["token", "sequence"],
    cap: float,
    floor: float | None = None,
) -> Tensor:
    """Trainer / sampler probability of each token or of the whole response, without gradient.

    Weights above cap are set to cap. With a floor, weights outside [floor, cap] are 0 instead.
    """
    mask_BT = response_mask_BT != 0
    gap_BT = log_ratio(logprobs_BT.detach(), rollout_logprobs_BT, mask_BT)
    if level == "sequence":
        gap_BT = gap_BT.sum(dim=1, keepdim=True).expand(mask_BT.shape)
    weights_BT = gap_BT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    if floor is None:
        weights_BT = weights_BT.clamp(max=cap)
    else:
        is_outside_BT = (weights_BT < floor) | (weights_BT > cap)
        weights_BT = weights_BT.masked_fill(is_outside_BT, 0.0)
    return torch.where(mask_BT, weights_BT, 0.0)


def rejection_mask(
    logprobs_BT: Tensor,
    rollout_logprobs_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    kind: Literal["seq_k1", "seq_k3"],
    low: float,
    high: float,
) -> Tensor:
    """The response mask without rollouts on which trainer and sampler disagree too much.

    seq_k1 keeps rollouts whose geometric mean of sampler / trainer is in [low, high]. seq_k3 keeps
    those whose mean r - 1 - log r, with r = trainer / sampler, is at most high (low is unused).
    """
    mask_BT = response_mask_BT != 0
    gap_BT = log_ratio(logprobs_BT.detach(), rollout_logprobs_BT, mask_BT)
    gap_BT = gap_BT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if kind == "seq_k1":
        mean_B = masked_mean(-gap_BT, mask_BT, dim=1)
        is_kept_B = (mean_B >= math.log(low)) & (mean_B <= math.log(high))
    else:
        is_kept_B = masked_mean(gap_BT.exp() - 1 - gap_BT, mask_BT, dim=1) <= high
    return torch.where(is_kept_B.unsqueeze(1), response_mask_BT, 0)


def mismatch(
    logprobs_BT: Tensor,
    rollout_logprobs_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    all_reduce: AllReduce = alone,
    all_reduce_max: AllReduce = alone,
) -> dict[str, float]:
    """Difference between sampler and trainer on the response tokens of all ranks.

    prob_diff_mean, prob_diff_max: absolute difference of probabilities. logprob_diff_mean,
    logprob_diff_max: of log-probs. kl_k3: estimate of KL(sampler, trainer) per token.
    """
    mask_BT = response_mask_BT != 0
    kept_BT = torch.where(mask_BT, logprobs_BT.detach(), 0.0)
    gap_BT = log_ratio(kept_BT, rollout_logprobs_BT, mask_BT)
    diff_BT = (kept_BT.exp() - torch.where(mask_BT, rollout_logprobs_BT, 0.0).exp()).abs()
    k3_BT = gap_BT.exp() - gap_BT - 1
    means = global_means(mask_BT, diff_BT, gap_BT.abs(), k3_BT, all_reduce=all_reduce)
    # start with 0: a rank may have no tokens
    largest = [torch.cat([v.new_zeros(1), v.flatten()]).max() for v in (diff_BT, gap_BT.abs())]
    prob_max, logprob_max = all_reduce_max(torch.stack(largest)).unbind()
    return {
        "prob_diff_mean": means[0],
        "prob_diff_max": prob_max.item(),
        "logprob_diff_mean": means[1],
        "logprob_diff_max": logprob_max.item(),
        "kl_k3": means[2],
    }
