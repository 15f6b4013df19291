"""Gradients of the losses: finite differences, and closed forms where a part is held fixed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rlcli.algos import covariance, losses
from rlcli.types import TokenLoss

OLD = torch.tensor([[-1.0, -2.0, -0.5, -3.0], [-1.5, -0.7, -2.2, -0.1]], dtype=torch.float64)
SHIFT = torch.tensor([[0.05, 0.6, -0.7, 1.9], [-0.02, -0.9, 0.4, 0.0]], dtype=torch.float64)
ADVANTAGES = torch.tensor([[1.5, 1.0, -0.5, -2.0], [-1.0, 2.0, 0.3, 0.7]], dtype=torch.float64)
MASK = torch.tensor([[1, 1, 0, 1], [1, 1, 1, 0]])
WEIGHTS = torch.tensor([[1.0, 0.5, 2.0, 1.5], [0.2, 1.0, 1.3, 0.8]], dtype=torch.float64)
SELECTED = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0]], dtype=torch.bool)
CLIP: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.3}
WIDE: dict[str, Any] = {"clip_low": 0.9, "clip_high": 9.0}


def gradient_of(loss: Callable[..., TokenLoss], **settings: Any) -> Tensor:
    logprobs = (OLD + SHIFT).requires_grad_()
    loss(logprobs, OLD, ADVANTAGES, MASK, **settings).loss_BT.sum().backward()
    assert logprobs.grad is not None
    return logprobs.grad


def assert_masked_close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected * MASK, rtol=1e-9, atol=1e-12)


DIFFERENTIABLE: list[tuple[str, Callable[..., TokenLoss], dict[str, Any]]] = [
    ("clip", losses.clip, {**CLIP, "clip_ratio_c": 3.0}),
    ("clip past the dual bound", losses.clip, {**CLIP, "clip_ratio_c": 1.5}),
    ("gmpo", losses.gmpo, CLIP),
    ("sapo", losses.sapo, {"tau_pos": 1.0, "tau_neg": 1.05}),
    ("gpg", losses.gpg, {}),
    ("dro", losses.dro, {"dro_beta": 0.5}),
    ("clip_cov", covariance.clip_cov, {**CLIP, "selected_BT": SELECTED}),
    ("kl_cov", covariance.kl_cov, {"kl_cov_coef": 0.7, "selected_BT": SELECTED}),
]


@pytest.mark.parametrize("correction", [None, WEIGHTS], ids=["plain", "corrected"])
@pytest.mark.parametrize(
    ("loss", "settings"),
    [row[1:] for row in DIFFERENTIABLE],
    ids=[row[0] for row in DIFFERENTIABLE],
)
def test_gradients_agree_with_finite_differences(
    loss: Callable[..., TokenLoss], settings: dict[str, Any], correction: Tensor | None
):
    def total(logprobs: Tensor) -> Tensor:
        arguments = {**settings, "correction_BT": correction}
        return loss(logprobs, OLD, ADVANTAGES, MASK, **arguments).loss_BT

    assert torch.autograd.gradcheck(total, ((OLD + SHIFT).requires_grad_(),))


def test_clipped_tokens_have_no_gradient():
    got = gradient_of(losses.clip, **CLIP, clip_ratio_c=3.0)
    assert got[0, 1] == 0.0  # A > 0, ratio e^.6 above 1.3
    assert got[0, 3] == 0.0  # A < 0, ratio e^1.9 above 3
    assert got[0, 0].item() == pytest.approx(-1.5 * math.exp(0.05))


def test_gspo_gives_every_token_the_gradient_of_its_own_logprob_times_the_sequence_ratio():
    mean = (SHIFT * MASK).sum(dim=1, keepdim=True) / MASK.sum(dim=1, keepdim=True)
    assert_masked_close(gradient_of(losses.gspo, **WIDE), -ADVANTAGES * mean.exp())
    got = gradient_of(losses.gspo, **CLIP)
    assert got[0, :2].tolist() == [0.0, 0.0]  # A > 0, sequence ratio e^.85 above 1.3
    assert got[0, 3].item() == pytest.approx(2.0 * mean[0].exp().item())


def test_cispo_gradient_goes_through_the_logprob_only():
    weight = SHIFT.exp().clamp(0.8, 1.3)
    assert_masked_close(gradient_of(losses.cispo, **CLIP), -ADVANTAGES * weight)


@pytest.mark.parametrize("loss", [losses.dppo_tv, losses.dppo_kl])
def test_dppo_gradient_is_the_cut_weight_times_the_advantage(loss: Callable[..., TokenLoss]):
    got = gradient_of(loss, clip_low=10.0, clip_high=10.0, clip_ratio_c=1.5)
    assert_masked_close(got, -ADVANTAGES * SHIFT.exp().clamp(max=1.5))
    none = gradient_of(loss, clip_low=0.0, clip_high=0.0, clip_ratio_c=1.5)
    moved_along = (SHIFT * ADVANTAGES) > 0
    assert not none[moved_along & (MASK == 1)].any()


def test_the_correction_scales_gradients_of_straight_through_losses():
    got = gradient_of(losses.cispo, **CLIP, correction_BT=WEIGHTS)
    assert_masked_close(got, -ADVANTAGES * SHIFT.exp().clamp(0.8, 1.3) * WEIGHTS)


def test_value_loss_gradients_agree_with_finite_differences():
    old, returns = torch.zeros_like(OLD), ADVANTAGES
    values = (2 * SHIFT).requires_grad_()

    def total(values: Tensor) -> Tensor:
        return losses.value_loss(values, old, returns, MASK, cliprange=0.5).loss_BT

    assert torch.autograd.gradcheck(total, (values,))
