"""Faster float32 linear layers on AMD processors with AVX-512, by oneDNN instead of MKL.

torch multiplies float32 matrices with MKL, which runs AVX2 code on non-Intel processors. oneDNN,
also part of torch, runs AVX-512 code on all of them: about twice as fast.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEWEST = 2**20
"""Multiplications below which calling oneDNN costs more than it saves."""
ROWS = 1024
"""Tokens per block in a weight's gradient: larger blocks do not fit the cache."""


def speed_up_linears(model: nn.Module) -> None:
    """Switch the model's linear layers to oneDNN's kernels if those are faster here."""
    if not is_faster():
        return
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.device.type == "cpu":
            # change the class, not the instance: model copies then use their own weights
            module.__class__ = OneDnnLinear


@cache
def is_faster() -> bool:
    """Whether this is an AMD processor with AVX-512 and torch has oneDNN's linear layer.

    Depends on the machine, not on timing, because a resumed run must compute the same numbers.
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
    """nn.Linear that uses oneDNN for large float32 inputs and weights.

    The size selects the kernel but never changes the graph: DeepSpeed puts gradients into buckets
    in the order they become ready, which must be equal on ranks with different token counts.
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
