"""A run that ran out of memory: whether an error means that, and the plan's cheapest cures."""

from __future__ import annotations

import traceback
from dataclasses import replace
from pathlib import Path
from typing import Final

from rlcli.config.resolved import Resolved
from rlcli.config.schema import Config
from rlcli.errors import TrainingError, UsageError
from rlcli.plan.memory import MemoryPlan, plan_memory
from rlcli.plan.report import RunPlan, plan_run
from rlcli.plan.savings import find_savings

PHASES: Final = {
    "generate": "rollout",
    "load_weights": "rollout",
    "annotate": "logprobs",
    "update": "update",
}
"""Method of sampler or engine to the plan's name for the phase."""
SIGNS: Final = (
    "OutOfMemoryError",
    "CUDA out of memory",
    "not enough memory",
    "can't allocate memory",
)
"""torch on CUDA, as a type or in another rank's words; torch's allocator on a CPU."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is torch's or Python's for memory that was not to be had."""
    text = f"{type(error).__name__}: {error}"
    return isinstance(error, MemoryError) or any(sign in text for sign in SIGNS)


def out_of_memory_error(error: BaseException, resolved: Resolved, cwd: Path) -> TrainingError:
    """`error` in a line, with the settings that `rlcli plan` would change first in that phase."""
    cause = f"{error}".split("\n")[0].split(". Process ")[0].strip() or type(error).__name__
    name = _phase_of(error)
    try:
        name, cures = _cures(plan_run(resolved, cwd), name)
    except UsageError:  # plan asks more than a run that has begun
        cures = []
    return TrainingError(
        f"out of memory in phase {name}: {cause}\n"
        f"Cheapest changes: {'; '.join(cures or _halves(resolved, name))}.\n"
        "Make one and go on with --resume auto. rlcli plan shows what each phase takes."
    )


def _phase_of(error: BaseException) -> str:
    """The plan's name of the phase in which `error` arose; update if its traceback shows none."""
    names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    return next((PHASES[name] for name in reversed(names) if name in PHASES), "update")


def _cures(plan: RunPlan, name: str) -> tuple[str, list[str]]:
    """(name of a planned phase, changes that lower its peak, cheapest first)."""
    phase = next((one for one in plan.phases if one.name == name), plan.largest)

    def again(changed: Config) -> MemoryPlan:
        return plan_memory(changed, plan.models, machine=plan.machine, num_val=0)

    savings = find_savings(plan.resolved, replace(plan.memory, phases=[phase]), again)
    return phase.name, [f"{cure.change} (-{cure.gain_gib:.2g} GiB)" for cure in savings]


def _halves(resolved: Resolved, name: str) -> list[str]:
    """What decides a phase's activations, halved: for models too small for the plan to see."""
    key = "rollout.max_num_seqs" if name == "rollout" else "train.tokens_per_micro_batch"
    return [f"{key}={max(1, resolved.values()[key] // 2)}"]
