"""What the update leaves out, or computes in another way, changes no gradient."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_parts import config, make_batch, make_engine
from torch import Tensor

from rlcli.algos.algorithm import Algorithm
from rlcli.config.schema import Config
from rlcli.engines.logprobs import _token_stats
from rlcli.engines.torch_engine import TorchEngine
from rlcli.types import StepRecord

LOSSES = ["clip", "gspo", "cispo", "sapo", "gpg", "clip_cov", "dppo_tv", "dppo_kl"]


def updated(
    model: Path, settings: Config, *, ties: bool, plain: bool = False, zero: bool = False
) -> tuple[dict[str, Tensor], StepRecord, TorchEngine]:
    """(weights, metrics, engine) after two updates. ties: two groups' scores are all alike."""
    engine: Any = make_engine(model, settings)
    algorithm: Any = Algorithm(settings, corrects_sampler=False)
    if plain:
        engine._is_unmoved = lambda *_: False
        algorithm = Plain(settings, corrects_sampler=False)
    batch = make_batch()
    if ties:
        rewards = batch.rewards_B.clone()
        rewards[4:12] = 1.0
        batch = replace(batch, rewards_B=rewards)
    record: StepRecord = {}
    for step in range(2):
        some = replace(batch, rewards_B=batch.valid_B) if zero and step else batch
        annotated = engine.annotate(some, algorithm)
        advantages = algorithm.advantages(annotated, all_reduce=engine.all_reduce)
        record = engine.update(annotated, advantages, algorithm, step=step)
    return {name: value.clone() for name, value in engine.weights()}, record, engine


class Plain(Algorithm):
    """One that computes everything."""

    @property
    def needs_advantage(self) -> bool:
        return False

    @property
    def reads_old_logprobs(self) -> bool:
        return True


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    """To a hundredth of one AdamW step, which a gradient of nearly 0 takes as well."""
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_rollouts_without_an_advantage_are_left_out_exactly(tiny_model: Path, loss: str) -> None:
    settings = config(algorithm__loss=loss, train__lr=1e-3, train__ppo_epochs=2, run__seed=2)
    fast, record, _ = updated(tiny_model, settings, ties=True)
    slow, all_of_it, _ = updated(tiny_model, settings, ties=True, plain=True)
    assert_same(fast, slow)
    # 4 groups of 4: one row is unscored, two groups are tied
    assert record["update/learning_share"] < 0.5
    assert all_of_it["update/learning_share"] == 1.0
    assert record["policy_loss"] == pytest.approx(all_of_it["policy_loss"], abs=1e-6)
    assert record["batch/samples"] > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm__kl_loss": True},
        {"algorithm__entropy_coef": 0.01},
        {"algorithm__loss": "dro", "algorithm__dro_beta": 0.1},
        {"algorithm__loss": "kl_cov"},
    ],
    ids=["kl", "entropy", "dro", "kl_cov"],
)
def test_a_term_that_needs_no_advantage_keeps_every_rollout(
    tiny_model: Path, changes: dict[str, Any]
) -> None:
    _, record, _ = updated(tiny_model, config(**changes), ties=True)
    assert record["update/learning_share"] == 1.0


def test_a_step_of_nothing_but_ties_moves_weights_by_momentum_as_ever(tiny_model: Path) -> None:
    settings = config(train__lr=1e-3, train__weight_decay=0.1)
    fast, record, _ = updated(tiny_model, settings, ties=False, zero=True)
    slow, _, _ = updated(tiny_model, settings, ties=False, zero=True, plain=True)
    before = {name: value.clone() for name, value in make_engine(tiny_model, settings).weights()}
    assert_same(fast, slow)
    assert any(not torch.equal(fast[name], before[name]) for name in fast)
    assert record["update/learning_share"] == 0.0
    assert record["grad_norm"] == 0.0
    # of what is not computed, -log p of its tokens estimates it
    batch = make_batch()
    told = -batch.rollout_logprobs_BT[batch.valid_B > 0]
    mask = batch.response_mask_BT[batch.valid_B > 0]
    assert record["entropy"] == pytest.approx(float((told * mask).sum() / mask.sum()))
    assert record["policy_loss"] == 0.0


@pytest.mark.parametrize("loss", ["clip", "gspo", "cispo", "gpg"])
def test_the_update_of_a_step_that_learns_once_takes_its_own_old_log_probs(
    tiny_model: Path, loss: str
) -> None:
    """The same weights as with a pass for them, which sampler log-probs of another model need."""
    settings = config(algorithm__loss=loss, train__lr=1e-3)
    fast, record, _ = updated(tiny_model, settings, ties=False)
    slow, with_pass, _ = updated(tiny_model, settings, ties=False, plain=True)
    assert_same(fast, slow)
    assert record["approx_kl"] == 0.0
    assert with_pass["approx_kl"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm__loss": "kl_cov", "algorithm__kl_cov_ratio": 0.3},
        {"algorithm__kl_loss": True, "algorithm__kl_loss_type": "abs"},
    ],
    ids=["kl_cov", "abs"],
)
def test_rounding_of_old_log_probs_does_not_choose_a_gradients_sign(
    tiny_model: Path, changes: dict[str, Any]
) -> None:
    """|lr| has a kink at 0, where the first update of a step is."""
    settings = config(train__lr=1e-3, train__mini_batch_prompts=2, **changes)
    ends = []
    for sign in (1, -1):
        engine, algorithm = (
            make_engine(tiny_model, settings),
            Algorithm(settings, corrects_sampler=False),
        )
        batch = engine.annotate(make_batch(), algorithm)
        rounded = 1e-6 * sign * torch.randn(batch.token_ids_BT.shape)
        batch = replace(batch, old_logprobs_BT=batch.old_logprobs_BT + rounded)
        advantages = algorithm.advantages(batch, all_reduce=engine.all_reduce)
        engine.update(batch, advantages, algorithm, step=0)
        ends.append({name: value.clone() for name, value in engine.weights()})
    assert_same(*ends)


def test_until_the_policy_learns_the_kl_is_0_and_a_tie_is_a_tie(tiny_model: Path) -> None:
    """The sampler's log-probs, which stand for the trainer's, are those but for rounding."""
    settings = config(algorithm__advantage="remax", algorithm__kl_in_reward=True)
    engine = make_engine(tiny_model, settings, exact=True)
    algorithm = Algorithm(settings, corrects_sampler=False)
    batch = make_batch()
    known = make_engine(tiny_model, settings).annotate(batch, algorithm).old_logprobs_BT
    sampled = known + 1e-6 * torch.randn(known.shape) * batch.response_mask_BT
    # half of the rewards are their baselines: what KL is left is not lost beside a reward of 0
    rewards = torch.tensor([0.0, 1.0]).repeat(8) * batch.valid_B
    batch = replace(batch, rollout_logprobs_BT=sampled, rewards_B=rewards)
    batch = replace(batch, baseline_B=torch.zeros(16))
    shares, divergences = [], []
    for step in range(2):
        annotated = engine.annotate(batch, algorithm)
        advantages = algorithm.advantages(annotated, all_reduce=engine.all_reduce)
        record = engine.update(annotated, advantages, algorithm, step=step)
        shares.append(record["update/learning_share"])
        divergences.append(advantages.stats["kl_divergence"])
        engine.sampler_is_exact = False  # these rollouts are of the policy before
    # 8 of 15 are ties: one of the others is unscored
    assert shares == [pytest.approx(7 / 15), 1.0]
    assert divergences[0] == 0.0
    assert abs(divergences[1]) > 1e-4


@pytest.mark.parametrize(
    "changes",
    [
        {"train__ppo_epochs": 2},
        {"train__mini_batch_prompts": 2},
        {"algorithm__rejection": "seq_k1"},
        {"algorithm__advantage": "otb"},
        {"algorithm__kl_in_reward": True},
        {"algorithm__loss": "clip_cov"},
        {"lora__rank": 2, "lora__dropout": 0.1},
    ],
    ids=["epochs", "mini_batches", "rejection", "otb", "kl", "clip_cov", "dropout"],
)
def test_old_log_probs_are_the_trainers_wherever_they_are_read(
    tiny_model: Path, changes: dict[str, Any]
) -> None:
    settings = config(**changes)
    engine = make_engine(tiny_model, settings)
    batch = make_batch()
    annotated = engine.annotate(batch, Algorithm(settings, corrects_sampler=False))
    gap = (annotated.old_logprobs_BT - batch.rollout_logprobs_BT).abs().max()
    assert gap > 0.1  # the batch's are random numbers


@pytest.mark.parametrize("extra", [None, "entropy", "entropy_grad", "sum_pi_squared"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_statistics_of_a_token_and_their_gradients_are_autograds(
    extra: Any, temperature: float
) -> None:
    torch.manual_seed(0)
    logits = 4 * torch.randn(7, 50, dtype=torch.float64)
    logits[2, 5:30] = float("-inf")
    targets = torch.randint(0, 5, (7,))
    weights, pulls = torch.randn(7).double(), 9 * torch.randn(7).double()

    def plain(x: Tensor) -> tuple[Tensor, Tensor]:
        logprobs = (x / temperature).log_softmax(-1)
        chosen = logprobs.gather(1, targets[:, None])[:, 0]
        p = logprobs.exp()
        if extra == "sum_pi_squared":
            return chosen, p.square().sum(-1).detach()
        entropy = -(p * torch.where(p > 0, logprobs, 0.0)).sum(-1)
        return chosen, entropy if extra == "entropy_grad" else entropy.detach()

    grads, outs = [], []
    for function in (plain, lambda x: _token_stats(lambda h: h, x, targets, temperature, extra)):
        x = logits.clone().requires_grad_()
        chosen, second = function(x)
        total = (weights * chosen).sum()
        if extra == "entropy_grad":
            total = total + (pulls * second).sum()
        total.backward()
        outs.append((chosen.detach(), second.detach()))
        grads.append(x.grad)
    torch.testing.assert_close(outs[1][0], outs[0][0])
    if extra is not None:
        torch.testing.assert_close(outs[1][1], outs[0][1])
    finite = torch.isfinite(logits)
    torch.testing.assert_close(grads[1][finite], grads[0][finite])
    assert not grads[1][~finite].any()
