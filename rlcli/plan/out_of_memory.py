"""Recognize out-of-memory errors and suggest the cheapest setting changes."""

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
"""Method of sampler or engine -> phase name in the plan."""
OOM_MARKERS: Final = (
    "OutOfMemoryError",
    "CUDA out of memory",
    "not enough memory",
    "can't allocate memory",
)
"""Text of torch's errors on CUDA (type name or message) and of its CPU allocator."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is an out-of-memory error of torch or Python."""
    text = f"{type(error).__name__}: {error}"
    return isinstance(error, MemoryError) or any(marker in text for marker in OOM_MARKERS)


def out_of_memory_error(error: BaseException, resolved: Resolved, cwd: Path) -> TrainingError:
    """`error` in one line, with the settings that `rlcli plan` would change first."""
    cause = f"{error}".split("\n")[0].split(". Process ")[0].strip() or type(error).__name__
    name = _phase_of(error)
    try:
        name, cures = _cures(plan_run(resolved, cwd), name)
    except UsageError:  # plan checks more than a run that has started
        cures = []
    return TrainingError(
        f"out of memory in phase {name}: {cause}\n"
        f"Cheapest changes: {'; '.join(cures or _halves(resolved, name))}.\n"
        "Make one and go on with --resume auto. rlcli plan shows what each phase takes."
    )


def _phase_of(error: BaseException) -> str:
    """Phase in which `error` was raised; "update" if the traceback does not show it."""
    names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    return next((PHASES[name] for name in reversed(names) if name in PHASES), "update")


def _cures(plan: RunPlan, name: str) -> tuple[str, list[str]]:
    """(phase name, changes that lower its peak, cheapest first)."""
    phase = next((phase for phase in plan.phases if phase.name == name), plan.largest)

    def replan(changed: Config) -> MemoryPlan:
        return plan_memory(changed, plan.models, machine=plan.machine, num_val=0)

    savings = find_savings(plan.resolved, replace(plan.memory, phases=[phase]), replan)
    return phase.name, [f"{cure.change} (-{cure.gain_gib:.2g} GiB)" for cure in savings]


def _halves(resolved: Resolved, name: str) -> list[str]:
    """If the plan suggests nothing: the setting that bounds the phase's activations, halved."""
    key = "rollout.max_num_seqs" if name == "rollout" else "train.tokens_per_micro_batch"
    return [f"{key}={max(1, resolved.values()[key] // 2)}"]
