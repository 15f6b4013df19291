"""Check by the memory plan whether a command fits a machine, and change it until it does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from rlcli.config.schema import Config, ModelConfig
from rlcli.plan.machine import Machine
from rlcli.plan.memory import MemoryPlan, Models, Phase, plan_memory
from rlcli.plan.models import family_of, shape_of_size
from rlcli.plan.needs import needs_of
from rlcli.plan.savings import Fitted, make_fit
from rlcli.plan.shapes import ModelShape
from rlcli.tools.recommend.command import Command, command_of
from rlcli.tools.recommend.situation import Pick, Situation

Placement = Literal["whole", "lora", "too large"]
LEFT_ALONE = frozenset(
    {"lora.rank", "data.max_response_tokens", "algorithm.kl_loss", "train.engine"}
)
"""What changes the task or the algorithm: adapters are a choice of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A command as far as it fits. whole: all weights are trained. costs: of what was added.

    largest: the phase that takes most. all_gib: of the settings as they were.
    """

    placement: Placement
    command: Command
    largest: Phase
    all_gib: float
    costs: list[str]


def place(s: Situation, pick: Pick) -> Placed:
    """The command of a pick with the cheapest settings that fit: all weights, or else adapters."""
    return _placed(s, pick, s.shape or shape_of_size(s.billions))


def _placed(s: Situation, pick: Pick, shape: ModelShape) -> Placed:
    machine = _machine(s)
    whole = command_of(s, pick)
    all_weights = _fitted(whole, "whole", shape, machine)
    if all_weights.placement == "whole":
        return all_weights
    adapters = _fitted(whole.with_adapters(), "lora", shape, machine)
    return replace(adapters, all_gib=all_weights.all_gib)


def _machine(s: Situation) -> Machine:
    kind = "cuda" if s.gpus else "cpu"
    return Machine(kind=kind, name=kind, memory_gib=s.memory_gib, devices=max(1, s.gpus))


@lru_cache(maxsize=512)
def _fitted(command: Command, placement: Placement, shape: ModelShape, machine: Machine) -> Placed:
    resolved = command.resolve()

    def again(config: Config) -> MemoryPlan:
        return _plan(config, shape, machine)

    plan = again(resolved.config)
    found = make_fit(resolved, plan, again, without=LEFT_ALONE)
    return Placed(
        placement=placement if found.fits else "too large",
        command=command.plus(found.words()),
        largest=found.plan.largest,
        all_gib=plan.largest.peak_gib,
        costs=found.costs,
    )


def _plan(config: Config, shape: ModelShape, machine: Machine) -> MemoryPlan:
    models = Models(policy=shape, critic=shape if "critic" in needs_of(config) else None)
    return plan_memory(config, models, machine=machine, num_val=None)


def largest_that_fits(s: Situation, pick: Pick) -> str | None:
    """The largest smaller model of the family, or of Qwen 2.5, that fits; None if none does."""
    shape = s.shape or shape_of_size(s.billions)
    family = family_of(s.model or "") or family_of(ModelConfig().path)
    for other in sorted(family, key=lambda one: -one.parameters):
        if other.parameters >= shape.parameters:
            continue
        if _placed(replace(s, shape=other), pick, other).placement != "too large":
            return other.name
    return None


def place_sharded(s: Situation, pick: Pick) -> Fitted:
    """Full training with all states sharded over the GPUs by the fsdp engine."""
    settings = {"train.engine": "fsdp", "train.n_gpus": s.gpus}
    resolved = command_of(s, pick).resolve().override(settings)
    machine = _machine(s)
    shape = s.shape or shape_of_size(s.billions)

    def again(config: Config) -> MemoryPlan:
        return _plan(config, shape, machine)

    return make_fit(resolved, again(resolved.config), again, without=LEFT_ALONE)
