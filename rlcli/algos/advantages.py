"""Advantage estimators: compute advantages from token rewards.

Every estimator takes token_rewards_BT (the score on the last response token or, with turn credit,
on the last token of each turn, minus any KL) and response_mask_BT, and reads other inputs by
keyword. A row with valid_B 0 gets 0 and is excluded
from every mean and count. Estimators that compare within a group treat the only valid row of a
group in the same way. Advantages are 0 where the mask is 0.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rlcli.algos.masked_stats import (
    MEAN_EPS,
    STD_EPS,
    Groups,
    build_groups,
    left_align,
    undo_left_align,
    whiten,
)
from rlcli.types import Advantages, AllReduce


def gae(
    token_rewards_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    values_BT: Tensor,
    valid_B: Tensor,
    all_reduce: AllReduce,
    gamma: float,
    lam: float,
    gamma_turn: float = 1.0,
) -> Advantages:
    """Whitened generalised advantages, and returns = advantages + values before whitening.

    Holes in the mask are skipped: the next token is the next masked-in token, discounted by
    gamma * gamma_turn behind a hole. Rewards on masked-out tokens are not read.
    Source: arXiv 1506.02438, eq. 16.
    """
    mask_BT = _token_mask(response_mask_BT, valid_B)
    rewards_BT = left_align(token_rewards_BT, mask_BT)
    aligned_values_BT = left_align(values_BT, mask_BT)
    next_values_BT = torch.zeros_like(aligned_values_BT)
    next_values_BT[:, :-1] = aligned_values_BT[:, 1:]
    discount = _discounts(mask_BT, gamma, gamma_turn, dtype=values_BT.dtype)
    deltas_BT = rewards_BT + discount * next_values_BT - aligned_values_BT
    raw_BT = _discounted_sums(deltas_BT, discount * lam)
    return Advantages(
        advantages_BT=whiten(undo_left_align(raw_BT, mask_BT), mask_BT, all_reduce=all_reduce),
        returns_BT=undo_left_align(raw_BT + aligned_values_BT, mask_BT),
    )


def grpo(
    token_rewards_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    group_B: Tensor,
    valid_B: Tensor,
    scale_by_std: bool,
    earned_BT: Tensor | None = None,
) -> Advantages:
    """Score minus group mean, divided by the group's standard deviation if `scale_by_std`.

    Equal scores give exactly 0. earned_BT: rewards before each token, which its advantage leaves
    out. Source: arXiv 2402.03300; without the division 2503.20783.
    """
    groups = build_groups(group_B, valid_B)
    totals_B = _scores(token_rewards_BT, valid_B)
    if earned_BT is not None and scale_by_std:
        std_B = groups.std(_behind_best(totals_B, groups)) + STD_EPS
        earned_BT = earned_BT / std_B.unsqueeze(1)
    scores_B = _group_normalised(totals_B, groups, scale_by_std)
    return _spread(scores_B, response_mask_BT, groups.active_B, earned_BT)


def grpo_passk(
    token_rewards_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    group_B: Tensor,
    valid_B: Tensor,
    scale_by_std: bool,
) -> Advantages:
    """Best minus second-best score of the group, for the best rollout; 0 for the others.

    With two best rollouts, all are 0. Source: arXiv 2503.19595.
    """
    groups = build_groups(group_B, valid_B)
    behind_B = _behind_best(_scores(token_rewards_BT, valid_B), groups)
    second_B = groups.largest(behind_B)[:, 1]
    lead_B = torch.where(groups.active_B & (behind_B == 0), -second_B, 0.0)
    if scale_by_std:
        lead_B = lead_B / (groups.std(behind_B) + STD_EPS)
    return _spread(lead_B, response_mask_BT, groups.active_B)


def rloo(
    token_rewards_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    group_B: Tensor,
    valid_B: Tensor,
    earned_BT: Tensor | None = None,
) -> Advantages:
    """Score minus the mean score of the group's other rollouts.

    earned_BT: rewards before each token, which its advantage leaves out.
    Source: arXiv 2402.14740.
    """
    groups = build_groups(group_B, valid_B)
    centred_B = _group_normalised(_scores(token_rewards_BT, valid_B), groups, False)
    others_B = (groups.count_B - 1).clamp(min=1)
    scores_B = centred_B * groups.count_B / others_B
    return _spread(scores_B, response_mask_BT, groups.active_B, earned_BT)


def reinforce_plus_plus(
    token_rewards_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    valid_B: Tensor,
    all_reduce: AllReduce,
    gamma: float,
    gamma_turn: float = 1.0,
) -> Advantages:
    """Discounted returns of the response tokens, whitened. Source: arXiv 2501.03262.

    Holes in the mask are not steps: they are skipped and have no reward. What comes behind one is
    discounted by gamma_turn as well.
    """
    mask_BT = _token_mask(response_mask_BT, valid_B)
    discount = _discounts(mask_BT, gamma, gamma_turn, dtype=token_rewards_BT.dtype)
    returns_BT = _discounted_sums(left_align(token_rewards_BT, mask_BT), discount)
    returns_BT = undo_left_align(returns_BT, mask_BT)
    return Advantages(advantages_BT=whiten(returns_BT, mask_BT, all_reduce=all_reduce))


def reinforce_plus_plus_baseline(
    token_rewards_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    group_B: Tensor,
    valid_B: Tensor,
    all_reduce: AllReduce,
    earned_BT: Tensor | None = None,
) -> Advantages:
    """Score minus group mean on every token, whitened.

    earned_BT: rewards before each token, which its advantage leaves out.
    Source: arXiv 2501.03262.
    """
    groups = build_groups(group_B, valid_B)
    centred_B = _group_normalised(_scores(token_rewards_BT, valid_B), groups, False)
    return _spread_whitened(centred_B, response_mask_BT, groups.active_B, all_reduce, earned_BT)


def remax(
    token_rewards_BT: Tensor, response_mask_BT: Tensor, *, baseline_B: Tensor, valid_B: Tensor
) -> Advantages:
    """Undiscounted reward-to-go minus the reward of the prompt's greedy rollout.

    Rewards on masked-out tokens are not read. Source: arXiv 2310.10505.
    """
    mask_BT = _token_mask(response_mask_BT, valid_B)
    advantages_BT = _rewards_to_go(token_rewards_BT, mask_BT) - baseline_B.unsqueeze(1)
    return Advantages(advantages_BT=torch.where(mask_BT, advantages_BT, 0.0))


def opo(
    token_rewards_BT: Tensor, response_mask_BT: Tensor, *, group_B: Tensor, valid_B: Tensor
) -> Advantages:
    """Score minus the group's mean score weighted by response length.

    The baseline of a group of empty responses is 0. Source: arXiv 2505.23585.
    """
    groups = build_groups(group_B, valid_B)
    behind_B = _behind_best(_scores(token_rewards_BT, valid_B), groups)
    lengths_B = (response_mask_BT != 0).sum(dim=1).to(behind_B.dtype)
    baseline_B = groups.sum(lengths_B * behind_B) / groups.sum(lengths_B).clamp(min=1)
    return _spread(behind_B - baseline_B, response_mask_BT, groups.active_B)


def gpg(
    token_rewards_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    group_B: Tensor,
    valid_B: Tensor,
    all_reduce: AllReduce,
) -> Advantages:
    """Score minus group mean, times valid rollouts per non-zero score over all ranks.

    Source: arXiv 2504.02546.
    """
    groups = build_groups(group_B, valid_B)
    scores_B = _scores(token_rewards_BT, valid_B)
    counts = torch.stack([(valid_B != 0).sum(), (scores_B != 0).sum()]).to(scores_B.dtype)
    counts = all_reduce(counts)
    centred_B = _group_normalised(scores_B, groups, False)
    centred_B = centred_B * (counts[0] / counts[1].clamp(min=1))
    return _spread(centred_B, response_mask_BT, groups.active_B)


def gdpo(
    token_rewards_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    group_B: Tensor,
    valid_B: Tensor,
    parts: Mapping[str, Tensor],
    part_weights: Mapping[str, float],
    all_reduce: AllReduce,
    scale_by_std: bool,
) -> Advantages:
    """Weighted sum of the GRPO advantages of every reward part, whitened.

    parts: name -> [B]; if empty, the token rewards are the only part; otherwise they are not read.
    part_weights: default 1.0. Source: arXiv 2601.05242.
    """
    groups = build_groups(group_B, valid_B)
    total_B = token_rewards_BT.new_zeros(len(token_rewards_BT))
    for name, part_B in (parts or {"reward": _scores(token_rewards_BT, valid_B)}).items():
        normalised_B = _group_normalised(part_B.to(total_B), groups, scale_by_std)
        total_B = total_B + part_weights.get(name, 1.0) * normalised_B
    return _spread_whitened(total_B, response_mask_BT, groups.active_B, all_reduce)


def otb(
    token_rewards_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    group_B: Tensor,
    valid_B: Tensor,
    old_logprobs_BT: Tensor,
    sum_pi_squared_BT: Tensor,
) -> Advantages:
    """Reward-to-go minus the group's variance-optimal baseline for that token's rank.

    The baseline is the mean reward-to-go weighted by the running sum of 1 - 2 pi + sum pi^2.
    The k-th response token is compared with the k-th of the other rollouts, not by position,
    because holes may differ between rollouts. Without holes, both are the same. Past the
    second-longest response of a group there are no other rollouts, and the baseline is 0.
    """
    groups = build_groups(group_B, valid_B)
    mask_BT = _token_mask(response_mask_BT, groups.active_B)
    variance_BT = 1 - 2 * old_logprobs_BT.exp() + sum_pi_squared_BT
    weights_BT = torch.where(mask_BT, variance_BT, 0.0).cumsum(dim=1)
    weights_BT = left_align(weights_BT, mask_BT)
    returns_BT = left_align(_rewards_to_go(token_rewards_BT, mask_BT), mask_BT)
    totals_BT = groups.sum(weights_BT) + MEAN_EPS
    baseline_BT = groups.sum(returns_BT * weights_BT) / torch.where(totals_BT == 0, 1.0, totals_BT)
    second_length_B = groups.largest(mask_BT.sum(dim=1).to(returns_BT.dtype))[:, 1]
    rank_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    baseline_BT = torch.where(rank_T < second_length_B.unsqueeze(1), baseline_BT, 0.0)
    return Advantages(advantages_BT=undo_left_align(returns_BT - baseline_BT, mask_BT))


def _token_mask(response_mask_BT: Tensor, rows_B: Tensor) -> Tensor:
    return (response_mask_BT != 0) & (rows_B != 0).unsqueeze(1)


def _scores(token_rewards_BT: Tensor, valid_B: Tensor) -> Tensor:
    # All rewards of the row count, at masked-out tokens too: the mask applies to tokens only.
    return torch.where(valid_B != 0, token_rewards_BT.sum(dim=1), 0.0)


def _behind_best(scores_B: Tensor, groups: Groups) -> Tensor:
    """Scores minus the best valid score of their group: at most 0, exactly 0 for ties.

    The mean of equal floats can differ from them in the last bit. Divided by a standard deviation
    of rounding noise plus 1e-6, this gave float32 advantages of 0.1 (verl 0.9.1).
    """
    best_B = groups.largest(scores_B)[:, 0]
    return torch.where(groups.active_B, scores_B - best_B, 0.0)


def _group_normalised(scores_B: Tensor, groups: Groups, scale_by_std: bool) -> Tensor:
    behind_B = _behind_best(scores_B, groups)
    centred_B = behind_B - groups.mean(behind_B)
    return centred_B / (groups.std(behind_B) + STD_EPS) if scale_by_std else centred_B


def _spread(
    scores_B: Tensor,
    response_mask_BT: Tensor,
    rows_B: Tensor,
    earned_BT: Tensor | None = None,
) -> Advantages:
    """The row's score on each of its tokens, less what was earned before the token."""
    mask_BT = _token_mask(response_mask_BT, rows_B)
    values_BT = scores_B.unsqueeze(1) if earned_BT is None else scores_B.unsqueeze(1) - earned_BT
    return Advantages(advantages_BT=torch.where(mask_BT, values_BT, 0.0))


def _spread_whitened(
    scores_B: Tensor,
    response_mask_BT: Tensor,
    rows_B: Tensor,
    all_reduce: AllReduce,
    earned_BT: Tensor | None = None,
) -> Advantages:
    mask_BT = _token_mask(response_mask_BT, rows_B)
    spread_BT = _spread(scores_B, response_mask_BT, rows_B, earned_BT).advantages_BT
    return Advantages(advantages_BT=whiten(spread_BT, mask_BT, all_reduce=all_reduce))


def _rewards_to_go(token_rewards_BT: Tensor, mask_BT: Tensor) -> Tensor:
    return torch.where(mask_BT, token_rewards_BT, 0.0).flip(1).cumsum(dim=1).flip(1)


def _discounts(
    mask_BT: Tensor, gamma: float, gamma_turn: float, *, dtype: torch.dtype
) -> float | Tensor:
    """Discount from each left-aligned token to the next: gamma, or gamma * gamma_turn at a hole."""
    if gamma_turn == 1.0:
        return gamma
    places_BT = torch.arange(mask_BT.shape[1], device=mask_BT.device).expand(mask_BT.shape)
    places_BT = left_align(places_BT, mask_BT)
    is_hole_BT = places_BT[:, 1:] > places_BT[:, :-1] + 1
    discounts_BT = torch.full(mask_BT.shape, gamma, dtype=dtype, device=mask_BT.device)
    discounts_BT[:, :-1][is_hole_BT] *= gamma_turn
    return discounts_BT


def _discounted_sums(values_BT: Tensor, discount: float | Tensor) -> Tensor:
    """Sum of the values from each position on, discounted step by step.

    discount: one for all steps, or [B, T] from each position to the next.
    """
    sums_TB = values_BT.t().clone(memory_format=torch.contiguous_format)
    for t in range(sums_TB.shape[0] - 2, -1, -1):
        here = discount[:, t] if isinstance(discount, Tensor) else discount
        sums_TB[t] += here * sums_TB[t + 1]
    return sums_TB.t()
