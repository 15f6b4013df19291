"""Shared parts of the loss functions: masked log-ratios, clipped surrogates, the result."""

from __future__ import annotations

import torch
from torch import Tensor

from rlcli.types import TokenLoss


def log_ratio(logprobs_BT: Tensor, old_logprobs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """logprobs - old_logprobs, 0 at masked-out tokens even if those are NaN or infinite.

    Both sides are masked before subtracting, because a NaN masked afterwards has NaN gradients.
    """
    return torch.where(mask_BT, logprobs_BT, 0.0) - torch.where(mask_BT, old_logprobs_BT, 0.0)


def surrogates(
    ratio_BT: Tensor, advantages_BT: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """-A r, and -A r with the ratio clipped to [1 - clip_low, 1 + clip_high]."""
    bounded_BT = ratio_BT.clamp(1 - clip_low, 1 + clip_high)
    return -advantages_BT * ratio_BT, -advantages_BT * bounded_BT


def token_loss(
    loss_BT: Tensor, mask_BT: Tensor, correction_BT: Tensor | None, **stats_BT: Tensor
) -> TokenLoss:
    """The corrected loss and detached statistics, 0 at masked-out tokens."""
    if correction_BT is not None:
        loss_BT = loss_BT * torch.where(mask_BT, correction_BT, 0.0)
    return TokenLoss(
        loss_BT=torch.where(mask_BT, loss_BT, 0.0),
        stats_BT={
            name: torch.where(mask_BT, values_BT.detach().to(loss_BT.dtype), 0.0)
            for name, values_BT in stats_BT.items()
        },
    )
