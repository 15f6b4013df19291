"""Gated feed-forward layers that save two tensors for the backward pass instead of four.

The intermediate results of down(act(gate) * up) are recomputed from gate and up, bit for bit.
This costs two elementwise passes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

FORWARD = "self.down_proj(self.act_fn(self.gate_proj(x))*self.up_proj(x))"
FORWARDS = (f"down_proj={FORWARD}returndown_proj", f"return{FORWARD}")
"""Forward of more than a hundred transformers architectures, with whitespace removed."""

Activation = Callable[[Tensor], Tensor]


def enable_recompute(model: nn.Module) -> None:
    """Make every gated MLP save only gate and up for the backward pass."""
    for module in model.modules():
        if hasattr(module, "gate_proj") and _is_gated(type(module)):
            module.__class__ = _recomputing_class(type(module))


def disable_recompute(model: nn.Module) -> None:
    """Undo `enable_recompute`: gradient checkpointing already recomputes whole layers."""
    for module in model.modules():
        if isinstance(module, _RecomputedGate):
            module.__class__ = type(module).__bases__[1]


@cache
def _is_gated(kind: type[nn.Module]) -> bool:
    try:
        body = inspect.getsource(kind.forward).split(":", 1)[1]
        return "".join(body.split()) in FORWARDS
    except (OSError, TypeError):
        return False


@cache
def _recomputing_class(kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (_RecomputedGate, kind), {"__module__": __name__})


class _RecomputedGate(nn.Module):
    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module
    act_fn: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        gate, up = self.gate_proj(x), self.up_proj(x)
        product: Tensor = _Product.apply(gate, up, self.act_fn)
        address, size = product.data_ptr(), product.numel()  # pack outlives this call

        def pack(saved: Tensor) -> Tensor | _Recomputed:
            is_product = saved.data_ptr() == address and saved.numel() == size
            return (
                _Recomputed(gate.detach(), up.detach(), self.act_fn, saved) if is_product else saved
            )

        with saved_tensors_hooks(pack, _unpack):
            return self.down_proj(product)


class _Recomputed:
    """A product that is recomputed when needed."""

    def __init__(self, gate: Tensor, up: Tensor, act: Activation, like: Tensor) -> None:
        self.gate, self.up, self.act = gate, up, act
        self.shape, self.stride = like.shape, like.stride()

    def tensor(self) -> Tensor:
        product = self.act(self.gate) * self.up
        return product.as_strided(self.shape, self.stride)


def _unpack(saved: Tensor | _Recomputed) -> Tensor:
    return saved.tensor() if isinstance(saved, _Recomputed) else saved


class _Product(torch.autograd.Function):
    """act(gate) * up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, act: Activation) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.act = act
        return act(gate) * up

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        gate, up = ctx.saved_tensors
        with torch.enable_grad():
            gate = gate.detach().requires_grad_()
            activated = ctx.act(gate)
        (grad_gate,) = torch.autograd.grad(activated, gate, grad * up)
        return grad_gate, activated.detach().mul_(grad), None
