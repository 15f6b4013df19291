"""vLLM beside the trainer: it samples the policy it was given, and says how likely it was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm_parts import (
    check_how_rollouts_end,
    check_is_the_trainers,
    check_what_draws_depend_on,
    largest_gap,
    move,
    prompts,
    reference,
    tokens,
    trainer_and_sampler,
)

from rlcli.errors import SamplerError
from rlcli.rollout.base import SamplingParams
from rlcli.rollout.weight_sync_check import VerifiedSampler
from rlcli.types import Rollout

KINDS: dict[str, dict[str, Any]] = {
    "tied": {"tied": True},
    "untied": {"tied": False, "rollout__temperature": 0.7},
    "lora": {"lora__rank": 4, "lora__alpha": 8.0},
}
PARAMS = SamplingParams(n=3, max_tokens=24)


@pytest.fixture(scope="module", params=KINDS)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SimpleNamespace]:
    folder = tmp_path_factory.mktemp(request.param)
    with trainer_and_sampler(folder, **KINDS[request.param]) as made:
        yield made


def test_after_each_of_ten_updates_it_is_the_trainers_policy(pair: SimpleNamespace) -> None:
    temperature = pair.config.rollout.temperature
    params = SamplingParams(n=3, max_tokens=24, temperature=temperature)
    for version in range(1, 11):
        move(pair.engine, seed=version)
        stale = pair.sampler.generate(prompts(), params, seed=version)
        assert largest_gap(reference(pair), stale, temperature) > 1e-2
        pair.sampler.load_weights(pair.engine.weights(), version=version)
        check_is_the_trainers(pair, version=version)


def test_rollouts_end_at_any_end_token_or_at_the_limit(pair: SimpleNamespace) -> None:
    check_how_rollouts_end(pair.sampler)


def test_what_is_drawn_depends_on_seed_and_place_alone(pair: SimpleNamespace) -> None:
    check_what_draws_depend_on(pair.sampler)


class Sleeping:
    """An engine that loses, asleep, what one on a GPU loses: the CPU's has no sleep."""

    def __init__(self, engine: Any) -> None:
        self._engine, self.asleep = engine, set[str]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def sleep(self, level: int) -> None:
        def lose(model: Any) -> None:
            for parameter in model.parameters():
                parameter.data.fill_(torch.nan)

        if level == 2:
            self._engine.apply_model(lose)
        self.asleep = {"weights", "kv_cache"}

    def wake_up(self, tags: list[str]) -> None:
        self.asleep -= set(tags)

    def collective_rpc(self, *args: Any, **more: Any) -> Any:
        assert "weights" not in self.asleep
        return self._engine.collective_rpc(*args, **more)

    def add_lora(self, adapter: Any) -> Any:
        assert "weights" not in self.asleep
        return self._engine.add_lora(adapter)

    def step(self) -> Any:
        assert not self.asleep
        return self._engine.step()


def test_an_engine_that_slept_has_the_next_weights(pair: SimpleNamespace) -> None:
    sampler, settings = pair.sampler, pair.sampler.settings
    awake, sampler.engine = sampler.engine, Sleeping(sampler.engine)
    sampler.settings = replace(settings, device="cuda")
    for version in (20, 21):
        sampler.sleep()
        move(pair.engine, seed=version)
        sampler.load_weights(pair.engine.weights(), version=version)
        assert sampler.engine.asleep == {"kv_cache"}
        check_is_the_trainers(pair, version=version)
    sampler.engine, sampler.settings = awake, settings


def test_more_prompts_than_are_read_at_once(pair: SimpleNamespace) -> None:
    many = prompts(4, length=60) * 20
    params = SamplingParams(n=2, max_tokens=4, temperature=pair.config.rollout.temperature)
    rollouts = pair.sampler.generate(many, params, seed=1)
    assert len(rollouts) == 160
    assert largest_gap(reference(pair), rollouts, params.temperature) < 1e-4


class Failing:
    """An engine whose steps fail from the third on."""

    def __init__(self, engine: Any) -> None:
        self._engine, self._steps = engine, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def step(self) -> Any:
        self._steps += 1
        if self._steps > 2:
            raise RuntimeError("CUDA error: an illegal memory access")
        return self._engine.step()


def test_an_engine_that_fails_is_started_again_once(
    pair: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = pair.sampler.generate(prompts(), PARAMS, seed=9)
    pair.sampler.engine = Failing(pair.sampler.engine)
    finished: list[int] = []
    rollouts = pair.sampler.generate(
        prompts(), PARAMS, seed=9, on_finish=lambda index, rollout: finished.append(index)
    )
    assert sorted(finished) == list(range(12))
    assert pair.told.pop() == (
        "vLLM failed: RuntimeError: CUDA error: an illegal memory access; it is started again, and "
        "samples what is missing."
    )
    assert tokens(rollouts) == tokens(undisturbed)

    pair.sampler.engine = Failing(pair.sampler.engine)
    fresh = "rlcli.rollout.vllm.local_sampler.start_engine"
    last = pair.sampler.engine._engine
    monkeypatch.setattr(fresh, lambda settings: Failing(last))
    monkeypatch.setattr("rlcli.rollout.vllm.local_sampler.let_go", lambda engine: None)
    with pytest.raises(SamplerError, match=r"failed twice.*illegal memory access"):
        pair.sampler.generate(prompts(), PARAMS, seed=9)
    pair.sampler.engine = last


def test_a_sampler_that_was_interrupted_goes_on(pair: SimpleNamespace) -> None:
    def interrupt(index: int, rollout: Rollout) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pair.sampler.generate(prompts(), PARAMS, seed=2, on_finish=interrupt)
    assert not pair.sampler.engine.has_unfinished_requests()
    assert len(pair.sampler.generate(prompts(), PARAMS, seed=2)) == 12


def checked(pair: SimpleNamespace, dtype: torch.dtype = torch.float32) -> VerifiedSampler:
    return VerifiedSampler(
        pair.sampler,
        pair.engine,
        prompts(),
        temperature=pair.config.rollout.temperature,
        max_tokens=24,
        dtype=dtype,
    )


def test_a_wrong_sync_is_caught(pair: SimpleNamespace) -> None:
    sampler = checked(pair)
    sampler.load_weights(pair.engine.weights(), version=1)
    good = list(pair.engine.weights())
    name = "layers.1.mlp.down_proj"
    broken = [(n, t + 0.1 * torch.randn_like(t) if name in n else t) for n, t in good]
    with pytest.raises(SamplerError, match="does not have the trainer's weights of step 2"):
        sampler.load_weights(iter(broken), version=2)
    sampler.load_weights(pair.engine.weights(), version=2)


def test_a_sync_that_does_nothing_is_caught(
    pair: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = checked(pair)
    sampler.load_weights(pair.engine.weights(), version=1)
    monkeypatch.setattr(pair.sampler, "load_weights", lambda weights, version: None)
    move(pair.engine, by=1e-5)
    with pytest.raises(SamplerError, match="still has the weights of step 1"):
        sampler.load_weights(pair.engine.weights(), version=2)
    monkeypatch.undo()
    pair.sampler.load_weights(pair.engine.weights(), version=2)


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_in_bfloat16_what_is_sent_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora_rank: int
) -> None:
    changes = {"model__dtype": "bfloat16", "lora__rank": lora_rank, "lora__alpha": 8.0}
    with trainer_and_sampler(tmp_path, **changes) as pair:
        sampler = checked(pair, torch.bfloat16)
        for version in range(4):
            sampler.load_weights(pair.engine.weights(), version=version)
            move(pair.engine, by=0.01, seed=version)
        trained = [p for p in pair.engine.policy.model.parameters() if p.requires_grad]
        with torch.no_grad():
            for parameter in trained:
                parameter.copy_(parameter.bfloat16())
        sampler.load_weights(pair.engine.weights(), version=4)
        with torch.no_grad():
            for parameter in trained:
                parameter.mul_(1 + 2**-10)  # rounds to the same bfloat16 number
        sampler.load_weights(pair.engine.weights(), version=5)
        monkeypatch.setattr(pair.sampler, "load_weights", lambda weights, version: None)
        with torch.no_grad():
            for parameter in trained:
                parameter.mul_(1 + 2**-7)
        with pytest.raises(SamplerError, match="still has the weights of step 4"):
            sampler.load_weights(pair.engine.weights(), version=6)
