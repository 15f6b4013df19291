from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from rlcli.algos.kl import AdaptiveKL, FixedKL, kl

LN2 = math.log(2)
# Policy twice as likely as the reference, then half as likely.
REF = torch.tensor([[-2.0, -2.0]], dtype=torch.float64)
LOGPROBS = REF + torch.tensor([[LN2, -LN2]], dtype=torch.float64)
VALUES: dict[str, list[float]] = {
    "k1": [LN2, -LN2],
    "abs": [LN2, LN2],
    "k2": [LN2**2 / 2, LN2**2 / 2],
    "k3": [0.5 + LN2 - 1, 2 - LN2 - 1],
}
GRADIENTS: dict[str, list[float]] = {
    "k1": [1.0, 1.0],
    "abs": [1.0, -1.0],
    "k2": [LN2, -LN2],
    "k3": [1 - 0.5, 1 - 2.0],
}


def value_and_gradient(kind: Any) -> tuple[list[float], list[float]]:
    logprobs = LOGPROBS.clone().requires_grad_()
    got = kl(logprobs, REF, kind)
    got.sum().backward()
    assert logprobs.grad is not None
    return got[0].tolist(), logprobs.grad[0].tolist()


@pytest.mark.parametrize("kind", list(VALUES))
def test_estimates_and_their_gradients(kind: str):
    value, gradient = value_and_gradient(kind)
    assert value == pytest.approx(VALUES[kind])
    assert gradient == pytest.approx(GRADIENTS[kind])


@pytest.mark.parametrize("kind", list(VALUES))
def test_plus_keeps_the_value_and_takes_the_gradient_of_k2(kind: str):
    value, gradient = value_and_gradient(f"{kind}+")
    assert value == pytest.approx(VALUES[kind])
    assert gradient == pytest.approx(GRADIENTS["k2"])


def test_k3_is_bounded():
    far = torch.tensor([[-30.0, 30.0, 100.0]])
    got = kl(far, torch.zeros(1, 3), "k3")
    assert got.tolist() == [[10.0, 10.0, 10.0]]


def test_the_fixed_coefficient_stays():
    controller = FixedKL(0.02)
    controller.update(5.0, 1000)
    controller.load_state(AdaptiveKL(9.0, target=0.1, horizon=10).state())
    assert controller.coef == 0.02


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        (0.11, 0.01 * (1 + 0.1 * 256 / 1000)),
        (5.0, 0.01 * (1 + 0.2 * 256 / 1000)),
        (0.0, 0.01 * (1 - 0.2 * 256 / 1000)),
        (math.inf, 0.01 * (1 + 0.2 * 256 / 1000)),
        (math.nan, 0.01),
    ],
)
def test_the_adaptive_coefficient_follows_the_target(measured: float, expected: float):
    controller = AdaptiveKL(0.01, target=0.1, horizon=1000)
    controller.update(measured, 256)
    assert controller.coef == pytest.approx(expected)


def test_the_adaptive_coefficient_goes_on_where_it_was_saved():
    first, second = (AdaptiveKL(0.01, target=0.1, horizon=1000) for _ in range(2))
    first.update(5.0, 256)
    second.load_state(first.state())
    first.update(0.3, 64)
    second.update(0.3, 64)
    assert second.coef == first.coef
    second.load_state(FixedKL(0.5).state())
    assert second.coef == first.coef
