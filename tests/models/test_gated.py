"""Gated layers that keep less: the same numbers to the bit, and half the memory."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers.models.gemma.configuration_gemma import GemmaConfig
from transformers.models.gemma.modeling_gemma import GemmaMLP
from transformers.models.qwen2.configuration_qwen2 import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

from rlcli.models.gated_mlp import disable_recompute, enable_recompute

SIZES: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 24}


def layers() -> list[nn.Module]:
    torch.manual_seed(0)
    return [Qwen2MLP(Qwen2Config(**SIZES)), GemmaMLP(GemmaConfig(**SIZES))]


def outcome(layer: nn.Module, x: Tensor) -> list[Tensor | None]:
    x = x.clone().requires_grad_()
    out = layer(x)
    out.square().sum().backward()
    return [out.detach(), x.grad, *(p.grad for p in layer.parameters())]


def kept_bytes(layer: nn.Module, x: Tensor) -> int:
    """Of distinct activations that a forward pass leaves for the backward pass."""
    weights = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = layer(x.clone().requires_grad_())
    assert out.requires_grad
    return sum(size for pointer, size in kept.items() if pointer not in weights)


@pytest.mark.parametrize("index", [0, 1], ids=["silu", "gelu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_the_same_to_the_bit(index: int, dtype: torch.dtype) -> None:
    plain = layers()[index].to(dtype)
    frugal = copy.deepcopy(plain)
    enable_recompute(frugal)
    x = torch.randn(1, 37, 8).to(dtype)
    for expected, got in zip(outcome(plain, x), outcome(frugal, x), strict=True):
        assert expected is not None
        assert torch.equal(got, expected)  # type: ignore[arg-type]


def test_adapters_see_the_same() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = layers()[0]

        def forward(self, x: Tensor) -> Tensor:
            return self.mlp(x)

    found = []
    for is_frugal in (False, True):
        model = Model()
        if is_frugal:
            enable_recompute(model)
        torch.manual_seed(1)
        adapted = get_peft_model(
            model,
            LoraConfig(r=2, target_modules=["gate_proj", "down_proj"], init_lora_weights=False),
        )
        found.append(
            outcome(adapted, torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(2)))
        )
    for expected, got in zip(*found, strict=True):
        assert (expected is None) == (got is None)
        if expected is not None and got is not None:
            assert torch.equal(got, expected)


def test_the_product_is_gone_after_the_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is saved is one thing; what is alive is what costs memory."""
    products: list[weakref.ref[torch.UntypedStorage]] = []
    layer = layers()[0]
    enable_recompute(layer)
    plain = layer.down_proj.forward

    def forward(product: Tensor) -> Tensor:
        products.append(weakref.ref(product))  # type: ignore[arg-type]
        return plain(product)

    monkeypatch.setattr(layer.down_proj, "forward", forward)
    out = layer(torch.randn(1, 5, 8, requires_grad=True))
    assert out.requires_grad
    assert [ref() for ref in products] == [None]


def test_it_keeps_two_tensors_of_four_until_that_is_undone() -> None:
    layer = layers()[0]
    x = torch.randn(1, 100, 8)
    wide, narrow = 100 * 24 * 4, 100 * 8 * 4
    assert kept_bytes(layer, x) == 4 * wide + narrow
    enable_recompute(layer)
    assert kept_bytes(layer, x) == 2 * wide + narrow
    disable_recompute(layer)
    assert type(layer) is Qwen2MLP
    assert kept_bytes(layer, x) == 4 * wide + narrow
