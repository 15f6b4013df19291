"""A sampler that does not have the trainer's weights stops the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from engine_parts import CPU, config, make_engine
from torch import Tensor
from transformers import AutoTokenizer

from rlcli.causal_lm import load_causal_lm
from rlcli.engines.torch_engine import TorchEngine
from rlcli.errors import SamplerError
from rlcli.in_sync import CheckedSampler
from rlcli.rollout.base import SamplingParams
from rlcli.rollout.native import NativeSampler
from rlcli.types import Prompt

Sync = Callable[[NativeSampler, Iterator[tuple[str, Tensor]], int], None]


class Copy(NativeSampler):
    """A sampler with weights of its own, taken as `sync` says."""

    sync: Sync = staticmethod(
        lambda sampler, weights, version: NativeSampler.load_weights(
            sampler, weights, version=version
        )
    )

    def load_weights(self, weights: Iterator[tuple[str, Tensor]], *, version: int) -> None:
        self.sync(self, weights, version)


@pytest.fixture
def engine(tiny_model: Path) -> TorchEngine:
    return make_engine(tiny_model, config(rollout__temperature=0.8))


@pytest.fixture
def sampler(tiny_model: Path, engine: TorchEngine) -> CheckedSampler:
    copy = Copy(
        load_causal_lm(str(tiny_model), dtype=torch.float32, device=CPU),
        AutoTokenizer.from_pretrained(tiny_model),
        eos_token_ids=[2],
        pad_token_id=0,
        max_rows=8,
        shares_weights=False,
    )
    asked = [Prompt(id=str(i), messages=(), token_ids=(5 + i, 6, 7)) for i in range(9)]
    return CheckedSampler(copy, engine, asked, temperature=0.8, max_tokens=24, dtype=torch.float32)


@torch.no_grad()
def move(engine: TorchEngine, by: float) -> None:
    for parameter in engine.policy.model.parameters():
        parameter.add_(by * torch.randn_like(parameter))


def set_sync(sampler: CheckedSampler, sync: Sync) -> None:
    assert isinstance(sampler.sampler, Copy)
    sampler.sampler.sync = sync


def test_the_trainers_policy_passes_after_every_update(
    engine: TorchEngine, sampler: CheckedSampler
) -> None:
    for version in range(6):
        sampler.load_weights(engine.weights(), version=version)
        move(engine, by=(0.0, 1e-7, 1e-4, 0.03, 0.3, 0.0)[version])
    rollouts = sampler.generate(
        [Prompt(id="x", messages=(), token_ids=(9, 8))], SamplingParams(n=3, max_tokens=4), seed=0
    )
    assert [rollout.policy_version for rollout in rollouts] == [5, 5, 5]


def test_one_layer_left_out_stops_the_run(engine: TorchEngine, sampler: CheckedSampler) -> None:
    sampler.load_weights(engine.weights(), version=0)
    move(engine, by=0.05)
    some = ((name, t) for name, t in engine.weights() if "layers.0.mlp" not in name)
    with pytest.raises(SamplerError, match="not have the trainer's weights of step 1") as stopped:
        sampler.load_weights(some, version=1)
    assert "rollout.engine=native" in str(stopped.value)
    assert len(str(stopped.value).splitlines()) <= 3


def test_weights_that_are_no_numbers_stop_the_run(
    engine: TorchEngine, sampler: CheckedSampler
) -> None:
    def spoil(copy: NativeSampler, weights: Iterator[tuple[str, Tensor]], version: int) -> None:
        spoilt = ((name, tensor * float("nan")) for name, tensor in weights)
        NativeSampler.load_weights(copy, spoilt, version=version)

    set_sync(sampler, spoil)
    with pytest.raises(SamplerError, match="differ by nan"):
        sampler.load_weights(engine.weights(), version=0)


def test_a_sync_that_does_nothing_is_found_though_each_step_is_rounding(
    engine: TorchEngine, sampler: CheckedSampler
) -> None:
    sampler.load_weights(engine.weights(), version=0)
    set_sync(sampler, lambda copy, weights, version: None)

    def take_small_steps() -> None:
        for version in range(1, 60):
            move(engine, by=1e-6)
            sampler.load_weights(engine.weights(), version=version)

    with pytest.raises(SamplerError, match="still has the weights of step 0"):
        take_small_steps()


def test_a_policy_that_does_not_move_may_be_given_again(
    engine: TorchEngine, sampler: CheckedSampler
) -> None:
    for version in range(4):
        sampler.load_weights(engine.weights(), version=version)
