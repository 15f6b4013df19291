"""A sampler that does not have the trainer's weights stops the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_parts import CPU, config, make_engine
from torch import Tensor
from transformers import AutoTokenizer

from rlcli.engines.torch_engine import TorchEngine
from rlcli.errors import SamplerError
from rlcli.models.causal_lm import load_causal_lm
from rlcli.rollout.base import SamplingParams
from rlcli.rollout.native import NativeSampler
from rlcli.rollout.weight_sync_check import VerifiedSampler
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
def sampler(tiny_model: Path, engine: TorchEngine) -> VerifiedSampler:
    return checked(tiny_model, engine, torch.float32)


@pytest.fixture
def half_sampler(tiny_model: Path, engine: TorchEngine) -> VerifiedSampler:
    """Samples in bfloat16; the trainer's weights are bfloat16 numbers to begin with."""
    with torch.no_grad():
        for parameter in engine.policy.model.parameters():
            parameter.copy_(parameter.bfloat16())
    return checked(tiny_model, engine, torch.bfloat16)


def checked(tiny_model: Path, engine: TorchEngine, dtype: torch.dtype) -> VerifiedSampler:
    copy = Copy(
        load_causal_lm(str(tiny_model), dtype=dtype, device=CPU),
        AutoTokenizer.from_pretrained(tiny_model),
        eos_token_ids=[2],
        pad_token_id=0,
        max_num_seqs=8,
        shares_weights=False,
    )
    asked = [Prompt(id=str(i), messages=(), token_ids=(5 + i, 6, 7)) for i in range(9)]
    return VerifiedSampler(copy, engine, asked, temperature=0.8, max_tokens=24, dtype=dtype)


@torch.no_grad()
def move(engine: TorchEngine, by: float) -> None:
    for parameter in engine.policy.model.parameters():
        parameter.add_(by * torch.randn_like(parameter))


def set_sync(sampler: VerifiedSampler, sync: Sync) -> None:
    assert isinstance(sampler.sampler, Copy)
    sampler.sampler.sync = sync


def expect_idle_sync_found(
    engine: TorchEngine,
    sampler: VerifiedSampler,
    change: Callable[[], None],
    *,
    versions: range,
    since: int = 0,
) -> None:
    """A sync that does nothing stops the run within these steps, each after a change of weights."""
    set_sync(sampler, lambda copy, weights, version: None)

    def take_steps() -> None:
        for version in versions:
            change()
            sampler.load_weights(engine.weights(), version=version)

    with pytest.raises(SamplerError, match=f"still has the weights of step {since}:"):
        take_steps()


def answers(sampler: VerifiedSampler) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    """Tokens and log-probs, of the same seed each time."""
    asked = [Prompt(id=str(i), messages=(), token_ids=(5 + i, 6, 7)) for i in range(9)]
    rollouts = sampler.generate(asked, SamplingParams(n=1, max_tokens=16, temperature=0.8), seed=0)
    return [(rollout.token_ids, tuple(rollout.logprobs)) for rollout in rollouts]


def test_the_trainers_policy_passes_after_every_update(
    engine: TorchEngine, sampler: VerifiedSampler
) -> None:
    for version in range(6):
        sampler.load_weights(engine.weights(), version=version)
        move(engine, by=(0.0, 1e-7, 1e-4, 0.03, 0.3, 0.0)[version])
    rollouts = sampler.generate(
        [Prompt(id="x", messages=(), token_ids=(9, 8))], SamplingParams(n=3, max_tokens=4), seed=0
    )
    assert [rollout.policy_version for rollout in rollouts] == [5, 5, 5]


def test_one_layer_left_out_stops_the_run(engine: TorchEngine, sampler: VerifiedSampler) -> None:
    sampler.load_weights(engine.weights(), version=0)
    move(engine, by=0.05)
    some = ((name, t) for name, t in engine.weights() if "layers.0.mlp" not in name)
    with pytest.raises(SamplerError, match="not have the trainer's weights of step 1") as stopped:
        sampler.load_weights(some, version=1)
    assert "rollout.engine=native" in str(stopped.value)
    assert len(str(stopped.value).splitlines()) <= 3


def test_weights_that_are_no_numbers_stop_the_run(
    engine: TorchEngine, sampler: VerifiedSampler
) -> None:
    def spoil(copy: NativeSampler, weights: Iterator[tuple[str, Tensor]], version: int) -> None:
        spoilt = ((name, tensor * float("nan")) for name, tensor in weights)
        NativeSampler.load_weights(copy, spoilt, version=version)

    set_sync(sampler, spoil)
    with pytest.raises(SamplerError, match="differ by nan"):
        sampler.load_weights(engine.weights(), version=0)


def test_a_sync_that_does_nothing_is_found_at_the_first_step_of_rounding(
    engine: TorchEngine, sampler: VerifiedSampler
) -> None:
    sampler.load_weights(engine.weights(), version=0)
    expect_idle_sync_found(engine, sampler, lambda: move(engine, by=1e-6), versions=range(1, 2))


def test_in_bfloat16_too_although_the_gap_is_rounding(
    engine: TorchEngine, half_sampler: VerifiedSampler
) -> None:
    half_sampler.load_weights(engine.weights(), version=0)
    expect_idle_sync_found(
        engine, half_sampler, lambda: move(engine, by=2e-4), versions=range(1, 2)
    )


def test_small_steps_add_up_until_a_sync_that_does_nothing_is_found(
    engine: TorchEngine, half_sampler: VerifiedSampler
) -> None:
    half_sampler.load_weights(engine.weights(), version=0)

    @torch.no_grad()
    def take_small_step() -> None:  # a 20th of what rounds to another bfloat16 number
        for parameter in engine.policy.model.parameters():
            parameter.mul_(1 + 2**-13)

    expect_idle_sync_found(engine, half_sampler, take_small_step, versions=range(1, 30))


def test_the_step_named_is_the_first_at_which_the_same_bits_were_sent(
    engine: TorchEngine, half_sampler: VerifiedSampler
) -> None:
    @torch.no_grad()
    def load_with_other_rounding(
        copy: NativeSampler, weights: Iterator[tuple[str, Tensor]], version: int
    ) -> None:
        NativeSampler.load_weights(copy, weights, version=version)
        for parameter in copy.lm.model.parameters():
            parameter.mul_(1 + 2**-7)

    half_sampler.load_weights(engine.weights(), version=0)
    before = answers(half_sampler)
    set_sync(half_sampler, load_with_other_rounding)
    half_sampler.load_weights(engine.weights(), version=1)
    assert answers(half_sampler) != before
    expect_idle_sync_found(
        engine, half_sampler, lambda: move(engine, by=2e-4), versions=range(2, 3)
    )


def test_the_step_named_is_the_last_at_which_other_bits_were_sent(
    engine: TorchEngine, half_sampler: VerifiedSampler
) -> None:
    half_sampler.load_weights(engine.weights(), version=0)
    move(engine, by=0.01)
    half_sampler.load_weights(engine.weights(), version=1)
    expect_idle_sync_found(
        engine, half_sampler, lambda: move(engine, by=2e-4), versions=range(2, 3), since=1
    )


@torch.no_grad()
def test_a_step_that_changes_no_bit_of_what_is_sent_may_be_repeated(
    engine: TorchEngine, half_sampler: VerifiedSampler
) -> None:
    half_sampler.load_weights(engine.weights(), version=0)
    before = answers(half_sampler)
    for parameter in engine.policy.model.parameters():
        parameter.mul_(1 + 2**-10)  # rounds to the same bfloat16 number
    half_sampler.load_weights(engine.weights(), version=1)
    assert answers(half_sampler) == before


@torch.no_grad()
def test_weights_that_leave_no_trace_in_log_probs_may_be_followed_by_a_repetition(
    engine: TorchEngine, sampler: VerifiedSampler
) -> None:
    sampler.load_weights(engine.weights(), version=0)
    before = answers(sampler)
    embedding: Any = engine.policy.model.get_input_embeddings().weight
    embedding[-1, 0] *= 1 + 1e-6  # one entry
    sampler.load_weights(engine.weights(), version=1)
    assert answers(sampler) == before


@torch.no_grad()
def test_a_policy_that_is_certain_of_every_token_may_repeat_itself(
    engine: TorchEngine, sampler: VerifiedSampler
) -> None:
    decoder: Any = engine.policy.model.get_decoder()
    norm = decoder.norm.weight
    norm.mul_(1e6)
    for version in range(3):
        sampler.load_weights(engine.weights(), version=version)
        assert {logprob for _, logprobs in answers(sampler) for logprob in logprobs} == {0.0}
        norm.mul_(1.01)


def test_a_policy_that_does_not_move_may_be_given_again(
    engine: TorchEngine, sampler: VerifiedSampler
) -> None:
    for version in range(4):
        sampler.load_weights(engine.weights(), version=version)
