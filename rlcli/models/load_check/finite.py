"""Find weights and outputs that are not finite."""

from __future__ import annotations

import math

import torch
from torch import nn

from rlcli.errors import ModelError
from rlcli.models.forward import local_part
from rlcli.models.load_check.noise import sums_of_calls
from rlcli.models.load_check.probe import Probe


def refuse_non_finite(model: nn.Module, name: str) -> None:
    """Raises: ModelError naming the first weight with a NaN or infinity."""
    if problem := find_non_finite(model):
        raise non_finite_error(name, problem)


def non_finite_error(name: str, problem: str) -> ModelError:
    """Error for a non-finite weight. problem: the result of `find_non_finite`."""
    return ModelError(
        f"{name} has weights that are not finite: {problem}.\n"
        "Copy or download the model again, or take an earlier checkpoint."
    )


@torch.no_grad()
def find_non_finite(model: nn.Module) -> str | None:
    """First weight with a NaN or infinity, with count and position; None if all are finite.

    For a sharded model, only this rank's rows are checked. Saved buffers are checked too, such as
    the bias of a router, but infinities in them are allowed because they are masks.
    """
    saved = model.state_dict().keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in saved}
    weights = {**dict(model.named_parameters()), **buffers}
    weights = {n: local_part(w) for n, w in weights.items()}
    named = [(n, w) for n, w in weights.items() if w.is_floating_point() and w.numel()]
    # a sum reads the weight once and needs no memory; all sums are copied to the host together
    sums = [weight.sum(dtype=torch.float32) for _, weight in named]
    is_finite = torch.stack(sums).isfinite().tolist() if sums else []
    for (name, weight), fine in zip(named, is_finite, strict=True):
        if fine:
            continue
        bad = (weight.isnan() if name in buffers else ~weight.isfinite()).nonzero()
        if len(bad):  # large finite numbers may add up to infinity
            at = bad[0].tolist()
            value = float(weight[tuple(at)])
            return f"{name} has {len(bad)} of {weight.numel()}, first {value} at {at}"
    return None


def first_non_finite_output(probe: Probe) -> str:
    """The first module in the model's own forward whose output is not finite."""
    calls = sums_of_calls(probe)
    bad = (n for n, (_, output) in calls.items() if not all(map(math.isfinite, output)))
    return next(bad, "its forward") or "its forward"
