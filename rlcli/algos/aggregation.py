"""Aggregate per-token values to a scalar, with denominators counted over all ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

import torch
from torch import Tensor

from rlcli.algos.masked_stats import masked_mean

if TYPE_CHECKING:
    from rlcli.config.schema import Aggregation


def count(response_mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """(tokens, rows with at least one token) of a mask, as integer scalars."""
    lengths_B = (response_mask_BT != 0).sum(dim=1)
    return lengths_B.sum(), (lengths_B > 0).sum()


def aggregate(
    values_BT: Tensor,
    response_mask_BT: Tensor,
    mode: Aggregation,
    *,
    num_tokens: Tensor | float,
    num_sequences: Tensor | float,
    scale_factor: float,
) -> Tensor:
    """Contribution of these rows to the aggregate of the whole mini-batch, as a scalar.

    num_tokens, num_sequences: sums of `count` over all micro-batches and ranks, so that the
    contributions add up; 0 counts as 1. scale_factor: divisor of seq_mean_token_sum_norm.
    """
    mask_BT = response_mask_BT != 0
    kept_BT = torch.where(mask_BT, values_BT, 0.0)
    match mode:
        case "token_sum":
            return kept_BT.sum()
        case "token_mean":
            return kept_BT.sum() / _at_least_one(num_tokens)
        case "seq_mean_token_sum":
            return kept_BT.sum(dim=1).sum() / _at_least_one(num_sequences)
        case "seq_mean_token_sum_norm":
            return kept_BT.sum(dim=1).sum() / _at_least_one(num_sequences) / scale_factor
        case "seq_mean_token_mean":
            return masked_mean(kept_BT, mask_BT, dim=1).sum() / _at_least_one(num_sequences)
        case _:
            assert_never(mode)


def _at_least_one(count: Tensor | float) -> Tensor | float:
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)
