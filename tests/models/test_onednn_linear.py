"""Linear layers by oneDNN: the same numbers as nn.Linear, wherever their layers are copied to."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from rlcli.models import onednn_linear
from rlcli.models.onednn_linear import OneDnnLinear, speed_up_linears


@pytest.fixture(autouse=True)
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """On any processor: the kernels are there on all of them."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(onednn_linear, "is_faster", lambda: True)
    monkeypatch.setattr(onednn_linear, "FEWEST", 1)


@pytest.mark.parametrize("rows", [1, 3, 1024, 2500])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_a_linear_layer(rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(24, 40, bias=bias)
    fast = copy.deepcopy(plain)
    speed_up_linears(nn.Sequential(fast))
    assert type(fast) is OneDnnLinear
    x = torch.randn(1, rows, 24)
    pull = torch.randn(1, rows, 40) / rows
    found = []
    for layer in (plain, fast):
        given = x.clone().requires_grad_()
        out = layer(given)
        out.backward(pull)
        found.append([out, given.grad, *(p.grad for p in layer.parameters())])
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_a_frozen_layer_passes_the_gradient_on_and_has_none() -> None:
    layer = nn.Linear(8, 8)
    layer.requires_grad_(False)
    speed_up_linears(nn.Sequential(layer))
    x = torch.randn(2, 8, requires_grad=True)
    kept: list[tuple[int, ...]] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = layer(x)
    assert kept == [(8, 8)]  # its input is not wanted
    out.sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None


def test_a_copy_has_weights_of_its_own() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    speed_up_linears(model)
    twin = copy.deepcopy(model)
    x = torch.randn(3, 4)
    before = twin(x)
    with torch.no_grad():
        model[0].weight.zero_()
    assert torch.equal(twin(x), before)
    assert not torch.equal(model(x), before)


def test_other_dtypes_autocast_and_no_rows_go_the_usual_way() -> None:
    layer = nn.Linear(4, 4)
    speed_up_linears(nn.Sequential(layer))
    assert layer(torch.zeros(0, 4)).shape == (0, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.ones(2, 4)).dtype is torch.bfloat16
    assert layer.double()(torch.ones(2, 4).double()).dtype is torch.float64


def test_small_matrices_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn_linear, "FEWEST", 2**20)
    monkeypatch.setattr(onednn_linear.F, "linear", lambda *all: 1 / 0)
    layer = nn.Linear(64, 64)
    speed_up_linears(nn.Sequential(layer))
    assert layer(torch.ones(256, 64)).shape == (256, 64)
    with pytest.raises(ZeroDivisionError):
        layer(torch.ones(255, 64))


def test_gradients_get_ready_in_one_order_whatever_the_number_of_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DeepSpeed adds them up between ranks by their place in that order."""
    monkeypatch.setattr(onednn_linear, "FEWEST", 2**20)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 8))
    speed_up_linears(model)
    ready: list[str] = []
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: ready.append(name))
    orders = set()
    for rows in (1, 255, 256, 2047, 2048):
        model(torch.ones(rows, 64)).sum().backward()
        orders.add(tuple(ready))
        ready.clear()
    assert len(orders) == 1
