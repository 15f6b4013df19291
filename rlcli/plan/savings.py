"""Setting changes that lower the largest peak, cheapest first; each gain comes from a new plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from rlcli.config.resolved import Resolved, show
from rlcli.config.schema import Config
from rlcli.plan.memory import MemoryPlan

SHOWN = 3
SMALLEST_GAIN = 0.01
"""Smallest reduction worth reporting, as a share of the peak."""
RANK = 16
Change = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySaving:
    """One change. peak_gib: of the named phase with it; gain_gib: what that is less.

    fits: whether every phase does with it; largest: the one that then takes most.
    """

    change: str
    cost: str
    phase: str
    gain_gib: float
    peak_gib: float
    fits: bool | None
    largest: str
    largest_gib: float
    values: Change


def find_savings(
    resolved: Resolved,
    plan: MemoryPlan,
    replan: Callable[[Config], MemoryPlan],
) -> list[MemorySaving]:
    """The cheapest changes that lower the peak of the largest phase, at most three.

    again: plans changed settings.
    """
    return [*islice(_iter_savings(resolved, plan, replan, frozenset()), SHOWN)]


def _iter_savings(
    resolved: Resolved,
    plan: MemoryPlan,
    replan: Callable[[Config], MemoryPlan],
    without: frozenset[str],
) -> Iterator[MemorySaving]:
    for choices, cost in _candidates(resolved.config, plan):
        if choices and not without & choices[0].keys():
            saving = _best(resolved, plan, replan, choices, cost)
            if saving is not None:
                yield saving


def _best(
    resolved: Resolved,
    plan: MemoryPlan,
    replan: Callable[[Config], MemoryPlan],
    choices: list[Change],
    cost: str,
) -> MemorySaving | None:
    """The mildest choice with which the phase fits.

    If none fits: the mildest with half the gain of the strongest. If everything already fits: the
    mildest. Other phases may still not fit, because no change of this kind lowers them.
    """
    before, name = plan.largest, plan.largest.name
    is_for_share = plan.lacks_vllm_share and name == "rollout"
    found: list[MemorySaving] = []
    for change in choices:
        changed = replan(resolved.override(change).config)
        if changed.lacks_vllm_share and (is_for_share or not plan.lacks_vllm_share):
            continue
        after = next(phase for phase in changed.phases if phase.name == name)
        gain = before.peak_gib - after.peak_gib
        if gain < SMALLEST_GAIN * before.peak_gib and not is_for_share:
            continue
        saving = MemorySaving(
            change=" ".join(_as_options(change)),
            cost=cost,
            phase=name,
            gain_gib=gain,
            peak_gib=after.peak_gib,
            fits=changed.largest.fits,
            largest=changed.largest.name,
            largest_gib=changed.largest.peak_gib,
            values=change,
        )
        if after.fits or before.fits is not False or is_for_share:
            return saving
        found.append(saving)
    most = max((saving.gain_gib for saving in found), default=0.0)
    return next((saving for saving in found if saving.gain_gib >= most / 2), None)


def _candidates(config: Config, plan: MemoryPlan) -> Iterator[tuple[list[Change], str]]:
    """(choices of one kind, mildest first; their cost), cheapest kind first."""
    phase = plan.largest.name
    train, model = config.train, config.model
    if phase == "rollout":
        yield from _sampling(config, plan)
    if phase == "logprobs":
        tokens = plan.workload.sweep.tokens
        sizes = _halves(tokens, _longest(config))
        yield [{"ref.tokens_per_micro_batch": size} for size in sizes], "a little speed"
    if phase in ("update", "critic"):
        yield _micro_batches(config, plan), "a little speed"
        if not model.gradient_checkpointing:
            yield [{"model.gradient_checkpointing": True}], "updates take a third longer"
    yield from _sharing(config, plan)
    if not plan.numerics.half:
        yield [{"model.dtype": "bfloat16"}], "coarser rounding"
    if not config.lora.rank:
        yield [{"lora.rank": RANK}], "adapters instead of all weights"
    yield from _tasks(config)
    if train.offload_params is False and plan.numerics.is_sharded:
        yield [{"train.offload_params": True}], "much speed"


def _sampling(config: Config, plan: MemoryPlan) -> Iterator[tuple[list[Change], str]]:
    rollout = config.rollout
    if plan.vllm is not None and not plan.vllm.fits:
        wider = [n for n in plan.vllm.widths if n > rollout.tensor_parallel]
        yield [{"rollout.tensor_parallel": n} for n in wider], "more communication in sampling"
        tenths = range(int(rollout.memory_fraction * 10 + 0.001) + 1, 10)
        yield [{"rollout.memory_fraction": t / 10} for t in tenths], "less memory to train in"
    elif rollout.is_native:
        fewest = rollout.n
        sizes = _halves(
            min(rollout.max_num_seqs, config.train.prompts_per_step * rollout.n), fewest
        )
        yield [{"rollout.max_num_seqs": size} for size in sizes], "some speed of sampling"
    elif rollout.memory_fraction > 0.2:
        tenths = range(int(rollout.memory_fraction * 10 - 0.001), 1, -1)
        yield [{"rollout.memory_fraction": t / 10} for t in tenths], "some speed of sampling"


def _micro_batches(config: Config, plan: MemoryPlan) -> list[Change]:
    """Smaller micro-batches, down to one rollout."""
    work = plan.workload.update if plan.largest.name == "update" else plan.workload.critic
    if not config.train.dynamic_batch:
        total = config.train.mini_batch_prompts * config.rollout.n
        sizes = [size for size in _halves(work.rows, 1) if total % size == 0]
        return [{"train.micro_batch_size": size} for size in sizes]
    sizes = _halves(work.tokens, _longest(config))
    return [{"train.tokens_per_micro_batch": size} for size in sizes]


def _longest(config: Config) -> int:
    return config.data.max_prompt_tokens + config.data.max_response_tokens


def _halves(number: int, fewest: int) -> list[int]:
    """Powers of two below `number`, in descending order, then `fewest` itself."""
    sizes: list[int] = []
    size = 1 << max(0, (number - 1).bit_length() - 1)
    while size > fewest:
        sizes.append(size)
        size //= 2
    return [*sizes, fewest] if fewest < number else sizes


def _sharing(config: Config, plan: MemoryPlan) -> Iterator[tuple[list[Change], str]]:
    """Moving states to the host or to other ranks."""
    train, numerics = config.train, plan.numerics
    if not numerics.is_sharded:
        if plan.processes > 1:
            yield [{"train.engine": "fsdp"}], "more communication"
        return
    has_copy = config.algorithm.needs_reference and not config.lora.rank
    if has_copy and numerics.device == "cuda" and not config.ref.offload_params:
        yield [{"ref.offload_params": True}], "a move every step"
    if numerics.fsdp:
        return
    if train.zero_stage < 3 and numerics.ranks > 1:
        stages = range(train.zero_stage + 1, 4)
        yield [{"train.zero_stage": stage} for stage in stages], "more communication"
    if not train.offload_optimizer and numerics.device == "cuda":
        yield [{"train.offload_optimizer": True}], "slower optimizer steps"


def _tasks(config: Config) -> Iterator[tuple[list[Change], str]]:
    """Changes to the training task itself."""
    response = config.data.max_response_tokens
    if response > 256:
        sizes = _halves(response, 256)
        yield [{"data.max_response_tokens": size} for size in sizes], "longer answers are cut"
    algorithm = config.algorithm
    if algorithm.kl_loss and not algorithm.kl_in_reward:
        yield [{"algorithm.kl_loss": False}], "no hold on the start policy"


def _as_options(change: Change) -> list[str]:
    return [f"{key}={show(value)}" for key, value in change.items()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """Several changes and their costs. plan: with the changes; it may still not fit."""

    values: Change
    costs: list[str]
    plan: MemoryPlan

    @property
    def fits(self) -> bool:
        """Whether every phase fits."""
        return self.plan.largest.fits is not False

    def words(self) -> list[str]:
        """The changes as a user types them."""
        return _as_options(self.values)


def make_fit(
    resolved: Resolved,
    plan: MemoryPlan,
    replan: Callable[[Config], MemoryPlan],
    *,
    without: frozenset[str] = frozenset(),
) -> Fitted:
    """The cheapest changes, added until every phase fits or no change helps.

    without: settings to leave alone.
    """
    start, values, costs = resolved, Change(), dict[str, str]()
    while plan.largest.fits is False:
        saving = next(_iter_savings(resolved, plan, replan, without), None)
        if saving is None:
            return Fitted(values=values, costs=[*dict.fromkeys(costs.values())], plan=plan)
        values |= saving.values
        costs |= dict.fromkeys(saving.values, saving.cost)
        resolved = resolved.override(saving.values)
        plan = replan(resolved.config)
    for key in reversed([*values]):  # a later change may have made an earlier one unnecessary
        fewer = {other: value for other, value in values.items() if other != key}
        smaller = replan(start.override(fewer).config)
        if smaller.largest.fits is not False:
            values, plan = fewer, smaller
    return Fitted(values=values, costs=[*dict.fromkeys(costs[key] for key in values)], plan=plan)
