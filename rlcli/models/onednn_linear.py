"""Linear layers in float32 on AMD processors, whose AVX-512 units MKL leaves idle.

torch multiplies float32 matrices by MKL, which runs AVX2 code on processors that are not Intel's;
oneDNN, which torch has as well, runs AVX-512 code on all of them: about twice as fast.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEWEST = 2**20
"""Multiplications below which a call of oneDNN costs more than it saves."""
ROWS = 1024
"""Tokens whose share of a weight's gradient is computed at once: larger blocks leave the cache."""


def speed_up_linears(model: nn.Module) -> None:
    """Give the model's linear layers oneDNN's kernels where those are the faster ones."""
    if not is_faster():
        return
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.device.type == "cpu":
            # a class, not a forward of the instance: copies of the model keep their own weights
            module.__class__ = OneDnnLinear


@cache
def is_faster() -> bool:
    """Whether this is an AMD processor with AVX-512, and this torch has oneDNN's linear layer.

    Asked of the machine, not of a clock: a run that goes on must compute as it did before.
    """
    try:
        vendor = Path("/proc/cpuinfo").read_text().partition("vendor_id")[2].partition("\n")[0]
    except OSError:
        return False
    has_kernel = torch.backends.mkldnn.is_available() and hasattr(
        torch.ops.mkldnn, "_linear_pointwise"
    )
    is_wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return "AuthenticAMD" in vendor and is_wide and has_kernel


class OneDnnLinear(nn.Linear):
    """nn.Linear by oneDNN while its input and weight are large and float32; else as it is.

    The size chooses the kernel, never the graph: in DeepSpeed's buckets gradients lie in the order
    in which they are ready, which must be the same on ranks whose numbers of tokens differ.
    """

    def forward(self, input: Tensor) -> Tensor:
        """x W^T + b."""
        is_single = input.dtype is self.weight.dtype is torch.float32
        if not is_single or torch.is_autocast_enabled("cpu"):
            return F.linear(input, self.weight, self.bias)
        if torch.is_grad_enabled():
            return _OneDnn.apply(input, self.weight, self.bias)
        return _linear(input, self.weight, self.bias)


class _OneDnn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        for_x, for_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if for_weight else None, weight if for_x else None)
        return _linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        grad_NO = grad.reshape(-1, grad.shape[-1])
        grad_x = _linear(grad, weight.t()) if for_x else None
        grad_weight = _outer(grad_NO, x.flatten(0, -2)) if for_weight else None
        return grad_x, grad_weight, grad_NO.sum(0) if for_bias else None


def _outer(grad_NO: Tensor, x_NI: Tensor) -> Tensor:
    """grad^T x, [O, I]."""
    total: Tensor | None = None
    for grad, x in zip(grad_NO.split(ROWS), x_NI.split(ROWS), strict=True):
        part = _linear(grad.t(), x.t())
        total = part if total is None else total.add_(part)
    assert total is not None
    return total


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if x.numel() * weight.shape[0] < FEWEST:
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
