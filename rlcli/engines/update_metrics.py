"""Sums of one update: per-token means, losses per mini-batch, gradient norms."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from torch import Tensor

from rlcli.distributed.collectives import ALONE, Ranks
from rlcli.types import StepRecord


class UpdateMetrics:
    """Collects what an update sees and gives the step's metrics."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.tokens: dict[str, Tensor] = {}
        self.losses: dict[str, Tensor] = {}
        self.norms: dict[str, list[float]] = defaultdict(list)
        self.mini_batches: dict[str, int] = defaultdict(int)
        self.notes: dict[str, float] = {}
        self.num_skipped = 0
        self.num_rows: list[int] = [0, 0]

    def add_tokens(self, stats_BT: Mapping[str, Tensor], mask_BT: Tensor) -> None:
        """Take in per-token statistics; masked tokens count for nothing."""
        num_tokens = mask_BT.sum()
        for name, values_BT in stats_BT.items():
            _accumulate(self.sums, name, (values_BT * mask_BT).sum())
            _accumulate(self.tokens, name, num_tokens)

    def add_loss(self, model: str, value: Tensor) -> None:
        """Take in one micro-batch's share of a mini-batch's loss."""
        _accumulate(self.losses, model, value.detach())

    def add_rows(self, learning: int, rows: int) -> None:
        """Count the rollouts of a mini-batch, and those that its gradient is made of."""
        self.num_rows[0] += learning
        self.num_rows[1] += rows

    def note(self, name: str, value: float) -> None:
        """Keep the first value given under a name."""
        self.notes.setdefault(name, value)

    def has_moved(self, model: str) -> bool:
        """Whether a mini-batch has changed the model's weights."""
        return bool(self.norms.get(model))

    def end_mini_batch(self, model: str, norm: float, *, taken: bool) -> None:
        """Count a mini-batch; the norm of a skipped one is no number to average."""
        self.mini_batches[model] += 1
        self.num_skipped += not taken
        if taken:
            self.norms[model].append(norm)

    def record(self, ranks: Ranks = ALONE) -> StepRecord:
        """Metrics of the update, over all ranks."""
        own = [
            {name: float(value) for name, value in found.items()}
            for found in (self.sums, self.tokens, self.losses)
        ]
        sums, tokens, losses = map(_added, zip(*ranks.gather(own), strict=True))
        out = {name: total / max(1.0, tokens[name]) for name, total in sums.items()}
        for model, total in losses.items():
            name = "value_loss" if model == "critic" else "policy_loss"
            out[name] = total / max(1, self.mini_batches[model])
        for model, norms in self.norms.items():
            name = "critic/grad_norm" if model == "critic" else "grad_norm"
            out[name] = sum(norms) / len(norms)
        if self.num_rows[1]:
            out["update/learning_share"] = self.num_rows[0] / self.num_rows[1]
        return {**out, **self.notes, "skipped_updates": float(self.num_skipped)}


def _added(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Sums by name, names in the order of their first rank."""
    out: dict[str, float] = {}
    for values in found:
        for name, value in values.items():
            out[name] = out.get(name, 0.0) + value
    return out


def _accumulate(totals: dict[str, Tensor], name: str, value: Tensor) -> None:
    """Add on the device: a number would wait for it."""
    totals[name] = totals[name] + value if name in totals else value
