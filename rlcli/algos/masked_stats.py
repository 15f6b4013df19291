"""Means, whitening and group statistics that ignore masked tokens and invalid rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlcli.types import AllReduce

MEAN_EPS = 1e-8
"""Added to counts in masked means and to variances in whitening."""
STD_EPS = 1e-6
"""Added to the standard deviation of a group before dividing by it."""


def alone(values: Tensor, /) -> Tensor:
    """Sum or maximum over a single process: the values themselves."""
    return values


def gather_alone(values: Tensor, /) -> tuple[list[Tensor], int]:
    """(tensors of all ranks, own rank) for a single process."""
    return [values], 0


def masked_mean(values_BT: Tensor, mask_BT: Tensor, *, dim: int | None = None) -> Tensor:
    """Mean over masked-in positions, overall or along `dim`; 0 if there are none."""
    mask_BT = mask_BT != 0
    kept_BT = torch.where(mask_BT, values_BT, 0.0)
    return kept_BT.sum(dim=dim) / (mask_BT.sum(dim=dim).to(kept_BT.dtype) + MEAN_EPS)


def global_means(mask_BT: Tensor, *values_BT: Tensor, all_reduce: AllReduce) -> list[float]:
    """Mean of each tensor over the masked-in positions of all ranks; 0 if there are none."""
    mask_BT = mask_BT != 0
    sums = [torch.where(mask_BT, values, 0.0).sum() for values in values_BT]
    count, *totals = all_reduce(torch.stack([mask_BT.sum().to(sums[0].dtype), *sums])).unbind()
    return [float(total / (count + MEAN_EPS)) for total in totals]


def whiten(values_BT: Tensor, mask_BT: Tensor, *, all_reduce: AllReduce) -> Tensor:
    """Values with mean 0 and variance 1 over the masked-in tokens of all ranks; 0 elsewhere.

    With fewer than two tokens globally, all values are 0. Every rank calls `all_reduce` twice,
    even without tokens. Values are centred before squaring, because raw sums of squares cancel.
    """
    mask_BT = mask_BT != 0
    values_BT = torch.where(mask_BT, values_BT, 0.0)
    sums = all_reduce(torch.stack([mask_BT.sum().to(values_BT.dtype), values_BT.sum()]))
    count, total = sums[0], sums[1]
    centred_BT = torch.where(mask_BT, values_BT - total / (count + MEAN_EPS), 0.0)
    variance = all_reduce(centred_BT.square().sum()) / (count + MEAN_EPS)
    variance = variance * (count / (count - 1).clamp(min=1))
    whitened_BT = centred_BT * torch.rsqrt(variance + MEAN_EPS)
    return torch.where(count >= 2, whitened_BT, 0.0)


def left_align(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Move masked-in values to the front of their row, in order, followed by 0."""
    mask_BT = mask_BT != 0
    num_rows, num_positions = values_BT.shape
    # Masked-out values all land in one extra column, which is cut off again.
    target_BT = torch.where(mask_BT, mask_BT.long().cumsum(1) - 1, num_positions)
    aligned_BT = values_BT.new_zeros(num_rows, num_positions + 1)
    return aligned_BT.scatter(1, target_BT, values_BT)[:, :num_positions]


def undo_left_align(aligned_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Move left-aligned values back to the masked-in positions; 0 elsewhere."""
    mask_BT = mask_BT != 0
    source_BT = (mask_BT.long().cumsum(1) - 1).clamp(min=0)
    return torch.where(mask_BT, aligned_BT.gather(1, source_BT), 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """Groups of rows; statistics over a group's valid rows come back as one value per row.

    Row b is at [group_B[b], column_B[b]] of a [P, G] grid. Sums along a grid row are bitwise
    reproducible on every device; adding by index is not on CUDA.
    valid_PG: grid positions of valid rows. count_B: valid rows in the row's group. active_B:
    valid rows with at least one other valid row in their group.
    """

    group_B: Tensor
    column_B: Tensor
    valid_PG: Tensor
    count_B: Tensor
    active_B: Tensor

    def sum(self, values_B: Tensor) -> Tensor:
        """Sum of the row's group. Trailing dimensions are kept: [B, T] gives [B, T]."""
        return self._grid(values_B, 0.0).sum(dim=1)[self.group_B]

    def mean(self, values_B: Tensor) -> Tensor:
        """Mean of the row's group."""
        return self.sum(values_B) / self.count_B.clamp(min=1)

    def std(self, values_B: Tensor) -> Tensor:
        """Unbiased standard deviation of the row's group, 0 for one row."""
        squares_B = self.sum((values_B - self.mean(values_B)).square())
        return (squares_B / (self.count_B - 1).clamp(min=1)).sqrt()

    def largest(self, values_B: Tensor) -> Tensor:
        """[B, 2]: the two largest values of the row's group, ties counted twice.

        -inf stands for missing rows.
        """
        return self._grid(values_B, -torch.inf).topk(2, dim=1).values[self.group_B]

    def _grid(self, values_B: Tensor, fill: float) -> Tensor:
        trailing = values_B.shape[1:]
        grid_PG = values_B.new_full((*self.valid_PG.shape, *trailing), fill)
        grid_PG[self.group_B, self.column_B] = values_B
        valid_PG = self.valid_PG.reshape(*self.valid_PG.shape, *(1 for _ in trailing))
        return torch.where(valid_PG, grid_PG, fill)


def build_groups(group_B: Tensor, valid_B: Tensor) -> Groups:
    """The groups that `group_B` names; rows in any order, group numbers with gaps allowed."""
    group_B = group_B.long()
    sizes_P = torch.bincount(group_B)
    starts_P = sizes_P.cumsum(0) - sizes_P
    order_B = torch.argsort(group_B, stable=True)
    rank_B = torch.arange(len(group_B), device=group_B.device)
    column_B = torch.empty_like(group_B)
    column_B[order_B] = rank_B - starts_P[group_B[order_B]]
    # At least two columns, so that `largest` always has two values.
    width = max(2, int(sizes_P.max())) if len(sizes_P) else 2
    valid_PG = torch.zeros(len(sizes_P), width, dtype=torch.bool, device=group_B.device)
    valid_PG[group_B, column_B] = valid_B != 0
    count_B = valid_PG.sum(dim=1)[group_B]
    return Groups(
        group_B=group_B,
        column_B=column_B,
        valid_PG=valid_PG,
        count_B=count_B,
        active_B=(valid_B != 0) & (count_B >= 2),
    )
