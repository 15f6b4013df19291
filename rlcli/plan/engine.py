"""Choose the training engine for `train.engine=auto` by memory."""

from __future__ import annotations

from rlcli.config.resolved import Resolved
from rlcli.plan.machine import Machine
from rlcli.plan.memory import Models, plan_memory
from rlcli.plan.states import num_processes

ENGINE = "train.engine"


def resolve_engine(
    resolved: Resolved, models: Models, machine: Machine, *, num_val: int | None
) -> Resolved:
    """Switch `train.engine=auto` to fsdp if several processes cannot each hold the whole run.

    Otherwise `resolved` is returned unchanged.
    """
    config = resolved.config
    if config.train.engine != "auto" or num_processes(config, machine.devices) == 1:
        return resolved
    phase = plan_memory(config, models, machine=machine, num_val=num_val).largest
    if phase.fits is not False or machine.memory_gib is None:
        return resolved
    changed = resolved.override({ENGINE: "fsdp"}).config
    shared = plan_memory(changed, models, machine=machine, num_val=num_val)
    if all(p.peak_gib >= phase.peak_gib for p in shared.phases if p.name == phase.name):
        return resolved  # vLLM is what does not fit; no training engine changes that
    return resolved.override(
        {ENGINE: "fsdp"},
        note=f"{ENGINE}=auto takes fsdp: whole on every device, the {phase.name} phase takes "
        f"{phase.peak_gib:.1f} GiB of {machine.memory_gib:.1f}.",
        origin="plan",
    )
