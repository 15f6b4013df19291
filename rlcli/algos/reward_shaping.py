"""Convert scores to token rewards."""

from __future__ import annotations

import torch
from torch import Tensor


def overlong_penalty(
    lengths_B: Tensor, *, max_tokens: int, buffer_fraction: float, factor: float
) -> Tensor:
    """Score to add for length: 0 before the buffer, then falling linearly to -factor.

    The buffer is the last buffer_fraction of max_tokens. Source: DAPO, arXiv 2503.14476.
    """
    buffer = max_tokens * buffer_fraction
    excess_B = lengths_B.to(torch.get_default_dtype()) - (max_tokens - buffer)
    return (-excess_B / buffer * factor).clamp(max=0.0)


def token_rewards(
    rewards_B: Tensor,
    response_mask_BT: Tensor,
    *,
    turn_rewards_BT: Tensor | None = None,
    kl_BT: Tensor | None = None,
    kl_coef: float = 0.0,
) -> Tensor:
    """[B, T]: the score on the row's last response token, minus kl_coef * KL on every one.

    turn_rewards_BT: the part of the score that single turns earned, on the last token of each;
    the rest stays on the row's last response token. A row without response tokens is all 0,
    regardless of its score.
    """
    mask_BT = response_mask_BT != 0
    from_here_BT = mask_BT.long().flip(1).cumsum(dim=1).flip(1)
    is_last_BT = mask_BT & (from_here_BT == 1)
    if turn_rewards_BT is None:
        rewards_BT = torch.where(is_last_BT, rewards_B.unsqueeze(1), 0.0)
    else:
        turn_rewards_BT = torch.where(mask_BT, turn_rewards_BT, 0.0)
        rest_B = rewards_B - turn_rewards_BT.sum(dim=1)
        rewards_BT = turn_rewards_BT + torch.where(is_last_BT, rest_B.unsqueeze(1), 0.0)
    if kl_BT is None:
        return rewards_BT
    return rewards_BT - kl_coef * torch.where(mask_BT, kl_BT, 0.0)


def rewards_before(token_rewards_BT: Tensor, response_mask_BT: Tensor) -> Tensor:
    """[B, T]: sum of the row's rewards on response tokens before each position."""
    rewards_BT = torch.where(response_mask_BT != 0, token_rewards_BT, 0.0)
    return rewards_BT.cumsum(dim=1) - rewards_BT
