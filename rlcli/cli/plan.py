"""`rlcli plan`."""

from __future__ import annotations

import json
import shutil
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlcli.cli.arguments import Json
from rlcli.cli.options import RunRequest, takes_run_options
from rlcli.terminal.text import WIDTH

if TYPE_CHECKING:
    from rlcli.plan import RunPlan

HEADS = ("states", "activ.", "logits", "rollout", "other", "peak")


@takes_run_options
def plan(
    request: RunRequest,
    memory_gib: Annotated[
        float | None, typer.Option(min=0.1, help="Memory of one device; none: this machine's.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Memory by phase, batches, disk and judge cost of a run; loads no weights."""
    from rlcli.plan import plan_run
    from rlcli.setup.resources import LOAD_CHECK_NOTE, check_local_models, check_positions

    resolved = request.resolve()
    check_positions(resolved)
    resolved = resolved.with_notes(*check_local_models(resolved), LOAD_CHECK_NOTE)
    print_plan(plan_run(resolved, Path.cwd(), memory_gib=memory_gib), as_json=as_json)


def print_plan(plan: RunPlan, *, as_json: bool) -> None:
    """One JSON object, or a page of plain text within 80 columns."""
    if as_json:
        print(json.dumps(plan.to_json(), ensure_ascii=False))
    else:
        print("\n".join(plan_lines(plan, width=min(WIDTH, shutil.get_terminal_size().columns))))


def plan_lines(plan: RunPlan, *, width: int = WIDTH) -> list[str]:
    """The plan for people."""
    lines = [*_model(plan), "", *_table(plan), "", *_facts(plan), "", _verdict(plan)]
    lines += _reliefs(plan) + [f"note: {warning}" for warning in plan.warnings]
    return [part for line in lines for part in _wrapped(line, width)]


def _wrapped(line: str, width: int) -> list[str]:
    if len(line) <= width:
        return [line]
    indent = len(line) - len(line.lstrip()) + 2
    return textwrap.wrap(
        line, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )


def _model(plan: RunPlan) -> list[str]:
    from rlcli.plan.states import critic_parameters

    policy, critic, reward = plan.models.policy, plan.models.critic, plan.models.reward
    lines = [f"model: {policy.name}, {policy.parameters:,} parameters"]
    if critic is not None:
        lines.append(f"critic: {critic.name}, {critic_parameters(critic):,} parameters")
    if reward is not None:
        lines.append(f"reward model: {reward.name}, {reward.parameters:,} parameters")
    machine = plan.machine
    memory = "" if machine.memory_gib is None else f", {machine.memory_gib:.1f} GiB"
    ranks = plan.memory.numerics.ranks
    each = f", one of {ranks}" if ranks > 1 else ""
    return [*lines, f"device: {machine.name}{memory}{each}"]


def _table(plan: RunPlan) -> list[str]:
    lines = [f"{'GiB':<13}" + "".join(f"{head:>11}" for head in HEADS)]
    for phase in plan.phases:
        numbers = (
            phase.states_gib,
            phase.activations_gib,
            phase.logits_gib,
            phase.rollout_gib,
            phase.overhead_gib,
            phase.peak_gib,
        )
        lines.append(f"{phase.name:<13}" + "".join(f"{number:>11.2f}" for number in numbers))
    return lines


def _facts(plan: RunPlan) -> list[str]:
    disk = plan.disk
    free = "" if disk.free_gib is None else f", {disk.free_gib:.1f} GiB free"
    verdict = {True: ": fits", False: ": does not fit", None: ""}[disk.fits]
    lines = [f"batch: {plan.batch[0]}", *(f"  {line}" for line in plan.batch[1:])]
    if plan.memory.host_gib:
        lines.append(f"offloaded to the host: {plan.memory.host_gib:.1f} GiB")
    if plan.memory.loading_host_gib:
        lines.append(
            f"while loading: {plan.memory.loading_host_gib:.1f} GiB of this machine's memory"
        )
    lines.append(
        f"disk: checkpoints of {disk.checkpoint_gib:.2f} GiB, final model "
        f"{disk.final_gib:.2f} GiB: {disk.needed_gib:.2f} GiB at most{free}{verdict}"
    )
    lines.append(
        f"while a checkpoint is written: {disk.checkpoint_gib:.2f} GiB more of this machine's "
        "memory, where half as much again is free; else training waits"
    )
    return [*lines, *_judge(plan)]


def _judge(plan: RunPlan) -> list[str]:
    judge = plan.judge
    if judge is None:
        return []
    calls = f"{'at most ' if judge.is_most else ''}{judge.calls_per_step:,} calls/step"
    if judge.calls is not None and judge.tokens is not None:
        calls += f", {judge.calls:,} calls, about {judge.tokens / 1e6:,.1f}M tokens in all"
    if judge.cost_usd is not None and judge.price is not None:
        into, out = judge.price
        calls += f", about ${judge.cost_usd:,.2f} (${into:g} in, ${out:g} out per million tokens"
        calls += f", prices of {judge.price_date})" if judge.price_date else ", as set)"
    elif judge.price is None:
        calls += ", cost unknown (no price for it)"
    return [f"judge: {judge.model}: {calls}"]


def _verdict(plan: RunPlan) -> str:
    phase, limit = plan.largest, plan.machine.memory_gib
    vllm = plan.memory.vllm
    if plan.memory.lacks_vllm_share and vllm is not None and phase.name == "rollout":
        return (
            f"does not fit: vLLM may use {vllm.share_gib:.2f} GiB of each GPU "
            "(rollout.memory_fraction), and its weights and one rollout take "
            f"{vllm.needs_gib:.2f}"
        )
    peak = f"the largest phase, {phase.name}, takes {phase.peak_gib:.2f}"
    if limit is None:
        return f"{peak} GiB"
    return f"{'fits' if plan.fits else 'does not fit'}: {peak} of {limit:.1f} GiB"


def _reliefs(plan: RunPlan) -> list[str]:
    if not plan.savings:
        return []
    name, wide = plan.largest.name, max(len(relief.change) for relief in plan.savings)
    lines = [f"cheapest ways to lower {name}:"]
    for relief in plan.savings:
        numbers = f"{relief.peak_gib:>7.2f} GiB (-{relief.gain_gib:.2f})"
        fits = ", fits" if relief.fits and not plan.fits else ""
        cost = relief.cost
        if relief.fits is False and relief.largest != name:
            cost += f"; {relief.largest} still takes {relief.largest_gib:.2f} GiB"
        lines.append(f"  {relief.change:<{wide}} {numbers}{fits}  {cost}")
    return [*lines, *_together(plan)]


def _together(plan: RunPlan) -> list[str]:
    together = plan.together
    if together is None:
        return []
    peak = f"{together.plan.largest.peak_gib:.2f} GiB"
    says = f"fits at {peak} with" if together.fits else f"does not fit: at least {peak}, with"
    return [f"{says} {' '.join(together.words())}"]
