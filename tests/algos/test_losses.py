"""Numbers worked out by hand for every loss that picks no tokens, and the rules they share."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rlcli.algos import losses
from rlcli.algos.registry import LOSSES
from rlcli.types import TokenLoss

CLIP: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.2}
DUAL: dict[str, Any] = {**CLIP, "clip_ratio_c": 3.0}
SETTINGS: dict[str, Any] = {
    **DUAL,
    "tau_pos": 1.0,
    "tau_neg": 1.05,
    "kl_cov_coef": 1.0,
    "dro_beta": 0.5,
}


def double(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def of_ratios(
    loss: Callable[..., TokenLoss], ratios: list[float], advantages: list[float], **settings: Any
) -> TokenLoss:
    """The loss of one row whose tokens had probability .1 and now have .1 times the ratio."""
    old = torch.full((1, len(ratios)), math.log(0.1), dtype=torch.float64)
    mask = torch.ones(1, len(ratios))
    return loss(old + double([ratios]).log(), old, double([advantages]), mask, **settings)


def run(name: str, *tensors: Tensor, **keywords: Any) -> TokenLoss:
    entry = LOSSES[name]
    module, _, function = entry.path.partition(":")
    selected = {"selected_BT": torch.zeros(tensors[0].shape, dtype=torch.bool)}
    inputs = selected if entry.inputs else {}
    settings = {key: SETTINGS[key] for key in entry.settings}
    return getattr(importlib.import_module(module), function)(
        *tensors, **inputs, **settings, **keywords
    )


def rows(values: Tensor) -> list[Any]:
    return [pytest.approx(row, rel=1e-7, abs=1e-9) for row in values.tolist()]


def test_clip():
    got = of_ratios(losses.clip, [1.1, 1.5, 1.5, 0.5, 0.5], [2, 2, -2, 2, -2], **DUAL)
    assert got.loss_BT.tolist() == rows(double([[-2.2, -2.4, 3.0, -1.0, 1.6]]))
    assert got.stats_BT["clip_frac"].tolist() == [[0, 1, 0, 0, 1]]
    assert got.stats_BT["ratio"].tolist() == rows(double([[1.1, 1.5, 1.5, 0.5, 0.5]]))
    assert got.stats_BT["approx_kl"].tolist() == rows(-double([[1.1, 1.5, 1.5, 0.5, 0.5]]).log())


def test_clip_has_sides_of_its_own():
    sides = {"clip_low": 0.4, "clip_high": 0.3, "clip_ratio_c": 3.0}
    got = of_ratios(losses.clip, [1.5, 0.5], [1, -1], **sides)
    assert got.loss_BT.tolist() == rows(double([[-1.3, 0.6]]))


def test_dual_clip_bounds_the_loss_of_negative_advantages_only():
    got = of_ratios(losses.clip, [4.0, 4.0], [-2, 2], **DUAL)
    assert got.loss_BT.tolist() == rows(double([[6.0, -2.4]]))
    assert got.stats_BT["clip_frac_lower"].tolist() == [[1, 0]]


def test_clip_log_ratio_is_within_twenty():
    old, mask = torch.full((1, 2), -40.0), torch.ones(1, 2)
    got = losses.clip(torch.tensor([[0.0, -80.0]]), old, torch.ones(1, 2), mask, **DUAL)
    assert got.stats_BT["approx_kl"].tolist() == [[-20.0, 20.0]]


def test_gspo():
    # One ratio for the row: sqrt(2 * .5) = 1 and sqrt(2 * 2) = 2.
    got = of_ratios(losses.gspo, [2.0, 0.5], [1, -3], **CLIP)
    assert got.loss_BT.tolist() == rows(double([[-1.0, 3.0]]))
    got = of_ratios(losses.gspo, [4.0, 1.0], [1, -3], **CLIP)
    assert got.loss_BT.tolist() == rows(double([[-1.2, 6.0]]))
    assert got.stats_BT["clip_frac"].tolist() == [[1, 0]]
    assert got.stats_BT["ratio"].tolist() == rows(double([[2.0, 2.0]]))


def test_gspo_log_ratio_is_at_most_ten():
    old, mask = torch.full((1, 2), -40.0), torch.ones(1, 2)
    got = losses.gspo(torch.zeros(1, 2), old, -torch.ones(1, 2), mask, **CLIP)
    assert got.loss_BT.tolist() == [pytest.approx([math.exp(10)] * 2, rel=1e-6)]


def test_cispo():
    got = of_ratios(losses.cispo, [1.5, 0.5, 1.1], [2, 2, -1], **CLIP)
    logs = [math.log(0.15), math.log(0.05), math.log(0.11)]
    expected = [[-1.2 * 2 * logs[0], -0.8 * 2 * logs[1], 1.1 * logs[2]]]
    assert got.loss_BT.tolist() == rows(double(expected))
    assert got.stats_BT["clip_frac"].tolist() == [[1, 1, 0]]


def test_gmpo():
    # Geometric mean of 2 and 8.
    got = of_ratios(losses.gmpo, [2.0, 8.0], [1, 1], clip_low=10.0, clip_high=10.0)
    assert got.loss_BT.tolist() == rows(double([[-4.0, -4.0]]))


@pytest.mark.parametrize(("advantage", "expected"), [(1.0, -math.exp(-0.3)), (-1.0, math.exp(0.3))])
def test_gmpo_clips_only_what_would_help(advantage: float, expected: float):
    # Log-ratios 1 and -1 in a band of .4: (.4 - 1) / 2 where A > 0, (1 - .4) / 2 where A < 0.
    ratios = [math.e, 1 / math.e]
    got = of_ratios(losses.gmpo, ratios, [advantage] * 2, clip_low=0.4, clip_high=0.4)
    assert got.loss_BT.tolist() == rows(double([[expected, expected]]))
    assert got.stats_BT["clip_frac"].tolist() == [[advantage > 0] * 2]
    assert got.stats_BT["clip_frac_lower"].tolist() == [[advantage < 0] * 2]


def test_gmpo_leaves_empty_rows_at_zero():
    ones = torch.ones(2, 2)
    mask = torch.tensor([[1, 1], [0, 0]])
    got = losses.gmpo(-ones, -ones, ones, mask, clip_low=0.4, clip_high=0.4)
    assert got.loss_BT.tolist() == [[-1.0, -1.0], [0.0, 0.0]]


def test_gmpo_correction_is_the_geometric_mean_of_the_weights():
    settings = {"clip_low": 10.0, "clip_high": 10.0, "correction_BT": double([[1.0, 4.0]])}
    got = of_ratios(losses.gmpo, [2.0, 8.0], [1, 1], **settings)
    assert got.loss_BT.tolist() == rows(double([[-8.0, -8.0]]))


def test_sapo():
    got = of_ratios(losses.sapo, [1.0, 2.0, 2.0], [3, 1, -1], tau_pos=1.0, tau_neg=2.0)
    gate_pos, gate_neg = 4 / (1 + math.exp(-1)), 2 / (1 + math.exp(-2))
    assert got.loss_BT.tolist() == rows(double([[-3 * 2, -gate_pos, gate_neg]]))


def test_gpg():
    got = of_ratios(losses.gpg, [1.5, 0.5], [2, -1])
    assert got.loss_BT.tolist() == rows(double([[-2 * math.log(0.15), math.log(0.05)]]))


def test_dro():
    got = of_ratios(losses.dro, [math.e, 1.0], [2, -1], dro_beta=0.5)
    expected = [[-2 * (math.log(0.1) + 1) + 0.25, math.log(0.1)]]
    assert got.loss_BT.tolist() == rows(double(expected))


def test_dppo_tv_drops_tokens_that_moved_too_far_along_the_advantage():
    # Probabilities .1 -> .25, .25, .05, .05, .4; too far is more than +.1 or less than -.04.
    settings = {"clip_low": 0.04, "clip_high": 0.1, "clip_ratio_c": 3.0}
    got = of_ratios(losses.dppo_tv, [2.5, 2.5, 0.5, 0.5, 4.0], [1, -1, 1, -1, -1], **settings)
    log = math.log
    expected = [[0, 2.5 * log(0.25), -0.5 * log(0.05), 0, 3.0 * log(0.4)]]
    assert got.loss_BT.tolist() == rows(double(expected))
    assert got.stats_BT["clip_frac"].tolist() == [[1, 0, 0, 1, 0]]
    assert got.stats_BT["clip_frac_lower"].tolist() == [[0, 0, 0, 0, 1]]


def test_dppo_kl_drops_tokens_whose_binary_kl_grew_too_far_along_the_advantage():
    # .1 -> .2: KL .1 ln .5 + .9 ln(.9 / .8) = .0367; .1 -> .05: .1 ln 2 + .9 ln(.9 / .95) = .0207.
    ratios, advantages = [2.0, 2.0, 0.5, 0.5], [1.0, -1.0, 1.0, -1.0]
    log = math.log
    kept = [-2 * log(0.2), 2 * log(0.2), -0.5 * log(0.05), 0.5 * log(0.05)]
    got = of_ratios(
        losses.dppo_kl, ratios, advantages, clip_low=0.03, clip_high=0.03, clip_ratio_c=3.0
    )
    assert got.loss_BT.tolist() == rows(double([[0, kept[1], kept[2], kept[3]]]))
    got = of_ratios(
        losses.dppo_kl, ratios, advantages, clip_low=0.02, clip_high=0.04, clip_ratio_c=3.0
    )
    assert got.loss_BT.tolist() == rows(double([[kept[0], kept[1], kept[2], 0]]))


def test_value_loss():
    # Old 0, range .5: value 1 counts as .5, value .2 as itself.
    got = losses.value_loss(
        double([[1.0, 1.0, 0.2]]),
        torch.zeros(1, 3),
        double([[2.0, 0.0, 1.0]]),
        torch.ones(1, 3),
        cliprange=0.5,
    )
    assert got.loss_BT.tolist() == rows(double([[0.5 * 1.5**2, 0.5, 0.5 * 0.64]]))
    assert got.stats_BT["clip_frac"].tolist() == [[1, 0, 0]]


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "gmpo"])
def test_the_correction_multiplies_the_loss_of_a_token(name: str):
    generator = torch.Generator().manual_seed(1)
    old, new, advantages = torch.randn(3, 3, 5, generator=generator) - 1
    weights = torch.rand(3, 5, generator=generator)
    mask = torch.ones(3, 5)
    plain = run(name, new, old, advantages, mask).loss_BT
    corrected = run(name, new, old, advantages, mask, correction_BT=weights).loss_BT
    torch.testing.assert_close(corrected, plain * weights)


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
def test_masked_tokens_have_no_loss_no_gradient_and_no_influence(name: str, garbage: float):
    generator = torch.Generator().manual_seed(2)
    old, new, advantages = torch.randn(3, 3, 5, generator=generator) - 1
    weights = torch.rand(3, 5, generator=generator)
    mask = torch.tensor([[1, 1, 0, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])

    def result(fill: float) -> tuple[TokenLoss, Tensor]:
        filled = [torch.where(mask == 1, x, fill) for x in (new, old, advantages, weights)]
        logprobs = filled[0].requires_grad_()
        got = run(name, logprobs, filled[1], filled[2], mask, correction_BT=filled[3])
        got.loss_BT.sum().backward()
        assert logprobs.grad is not None
        return got, logprobs.grad

    got, gradient = result(garbage)
    clean, clean_gradient = result(0.0)
    assert torch.isfinite(got.loss_BT).all()
    assert torch.equal(got.loss_BT, clean.loss_BT)
    assert torch.equal(gradient, clean_gradient)
    assert not got.loss_BT[mask == 0].any()
    assert not gradient[mask == 0].any()
    for values in got.stats_BT.values():
        assert not values[mask == 0].any()


@pytest.mark.parametrize("name", list(LOSSES))
def test_statistics_carry_no_gradient(name: str):
    logprobs = torch.full((1, 2), -1.0, requires_grad=True)
    others = torch.full((1, 2), -1.5), torch.ones(1, 2), torch.ones(1, 2)
    got = run(name, logprobs, *others)
    assert got.loss_BT.requires_grad
    assert not any(values.requires_grad for values in got.stats_BT.values())


def test_value_loss_ignores_masked_tokens():
    values = torch.tensor([[1.0, math.nan]], requires_grad=True)
    bad = torch.tensor([[0.0, math.inf]])
    got = losses.value_loss(values, bad, bad, torch.tensor([[1, 0]]), cliprange=2.0)
    got.loss_BT.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[1.0, 0.0]]
