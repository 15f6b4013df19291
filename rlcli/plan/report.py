"""The whole plan of a run: memory, batches, steps, disk, judge, and memory savings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlcli.config.resolved import Resolved
from rlcli.config.schema import Config
from rlcli.data.files import find_files
from rlcli.data.sets import is_held_out, num_held_out
from rlcli.errors import DataNotFoundError
from rlcli.plan.disk import DiskPlan, find_free_gib, plan_disk
from rlcli.plan.engine import resolve_engine
from rlcli.plan.judge import JudgePlan, plan_judge
from rlcli.plan.machine import Machine, find_machine
from rlcli.plan.memory import MemoryPlan, Models, Phase, plan_memory
from rlcli.plan.models import find_shape
from rlcli.plan.needs import needs_of
from rlcli.plan.savings import Fitted, MemorySaving, find_savings, make_fit
from rlcli.plan.shapes import ModelShape
from rlcli.plan.states import critic_parameters
from rlcli.setup import checks
from rlcli.setup.resources import read_data


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """Resources that a run will take. Numbers are None if the data to count is not present.

    fits: whether every phase fits the device; None if its memory is unknown. together: several
    changes at once, if no single change makes the run fit.
    """

    resolved: Resolved
    machine: Machine
    models: Models
    memory: MemoryPlan
    batch: list[str]
    steps_per_epoch: int | None
    steps: int | None
    disk: DiskPlan
    judge: JudgePlan | None
    savings: list[MemorySaving]
    together: Fitted | None
    warnings: list[str]

    @property
    def phases(self) -> list[Phase]:
        """Phases in the order of a step."""
        return self.memory.phases

    @property
    def largest(self) -> Phase:
        """The phase with the highest peak."""
        return self.memory.largest

    @property
    def fits(self) -> bool | None:
        """Whether the largest phase fits."""
        return self.largest.fits

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values, the contract of `rlcli plan --json`."""
        policy, critic, reward = self.models.policy, self.models.critic, self.models.reward
        return {
            "phases": [asdict(phase) for phase in self.phases],
            "fits": self.fits,
            "device": asdict(self.machine),
            "host_gib": self.memory.host_gib,
            "loading_host_gib": self.memory.loading_host_gib,
            "vllm": None if self.memory.vllm is None else asdict(self.memory.vllm),
            "model": {
                "path": policy.name,
                "type": policy.kind,
                "parameters": policy.parameters,
                "critic_parameters": None if critic is None else critic_parameters(critic),
                "reward_model_parameters": None if reward is None else reward.parameters,
            },
            "batch": self.batch,
            "steps_per_epoch": self.steps_per_epoch,
            "steps": self.steps,
            "checkpoint_gib": self.disk.checkpoint_gib,
            "disk": asdict(self.disk),
            "judge": None if self.judge is None else asdict(self.judge),
            "suggestions": [asdict(saving) for saving in self.savings],
            "together": None if self.together is None else _together(self.together),
            "warnings": self.warnings,
        }


def _together(fitted: Fitted) -> dict[str, Any]:
    return {
        "values": fitted.values,
        "costs": fitted.costs,
        "peak_gib": fitted.plan.largest.peak_gib,
        "fits": fitted.fits,
    }


def plan_run(resolved: Resolved, cwd: Path, *, memory_gib: float | None = None) -> RunPlan:
    """The plan of a run started in `cwd`, on this machine or on devices of `memory_gib`.

    Raises: UsageError for settings that cannot run, bad data, or an unknown model.
    """
    resolved = checks.check(resolved)
    config = resolved.config
    num_prompts, missing = _count_rows(config, config.data.train, cwd)
    num_val, missing_val = 0, list[str]()
    if is_held_out(config.data.val):
        num_val = None if num_prompts is None else num_held_out(num_prompts)
        num_prompts = None if num_prompts is None else num_prompts - (num_val or 0)
    elif config.data.val:
        num_val, missing_val = _count_rows(config, config.data.val, cwd)
    if num_val and config.data.val_limit > 0:
        num_val = min(num_val, config.data.val_limit)
    critic = None
    if "critic" in needs_of(config):
        critic = find_shape(config.critic.path or config.model.path, source=config.model.hub)
    return make_memory_plan(
        resolved.with_notes(*missing, *missing_val),
        num_prompts=num_prompts,
        num_val=num_val,
        shape=find_shape(config.model.path, source=config.model.hub),
        critic=critic,
        reward_model=_reward_shape(config),
        machine=find_machine(config.train, memory_gib=memory_gib),
        free_disk_gib=find_free_gib(config, cwd),
    )


def make_memory_plan(
    resolved: Resolved,
    *,
    num_prompts: int | None,
    shape: ModelShape,
    machine: Machine,
    num_val: int | None = 0,
    critic: ModelShape | None = None,
    reward_model: ModelShape | None = None,
    free_disk_gib: float | None = None,
) -> RunPlan:
    """The plan of checked settings on a given machine; reads no files."""
    resolved, batch, batches = _resolve_batches(resolved, num_prompts)
    models = Models(policy=shape, critic=critic, reward=reward_model)
    resolved = resolve_engine(resolved, models, machine, num_val=num_val)
    config = resolved.config

    def replan(changed: Config) -> MemoryPlan:
        return plan_memory(changed, models, machine=machine, num_val=num_val)

    memory = replan(config)
    savings = find_savings(resolved, memory, replan)
    is_enough = memory.largest.fits is not False or any(saving.fits for saving in savings)
    steps = batches.num_steps if batches else config.train.max_steps
    return RunPlan(
        resolved=resolved,
        machine=machine,
        models=models,
        memory=memory,
        batch=batch,
        steps_per_epoch=batches.steps_per_epoch if batches else None,
        steps=steps,
        disk=plan_disk(config, models, free_gib=free_disk_gib),
        judge=plan_judge(
            config, steps=steps, num_val=num_val, prompts=config.train.prompts_per_step
        ),
        savings=savings,
        together=None if is_enough else make_fit(resolved, memory, replan),
        warnings=[*resolved.notes, *_warnings(config, machine, memory)],
    )


def _resolve_batches(
    resolved: Resolved, num_prompts: int | None
) -> tuple[Resolved, list[str], checks.Batching | None]:
    """(settings clamped to the data, the arithmetic as text, its numbers if data is present)."""
    if num_prompts is None:
        return resolved, [checks.step_line(resolved.config)], None
    config, lines = checks.batch_arithmetic(resolved.config, num_prompts)
    *shrunk, step, run = lines
    batches = checks.batching(config, num_prompts)
    return resolved.clamp_to_data(config).with_notes(*shrunk), [step, run], batches


def _warnings(config: Config, machine: Machine, memory: MemoryPlan) -> list[str]:
    notes: list[str] = []
    train = config.train
    asked = {"train.n_gpus": train.n_gpus or machine.devices, "train.nnodes": train.nnodes}
    asked = [f"{key}={number}" for key, number in asked.items() if number > 1]
    if asked and not memory.numerics.is_sharded:
        notes.append(
            f"{', '.join(asked)}: every process holds the whole of it, and the numbers are those "
            "of one device. train.engine=fsdp shares the states out."
        )
    if machine.host_gib is not None and memory.host_gib > machine.host_gib:
        notes.append(
            f"what is offloaded takes {memory.host_gib:.1f} GiB of this machine's "
            f"{machine.host_gib:.1f} GiB of memory."
        )
    if machine.host_gib is not None and memory.loading_host_gib > machine.host_gib:
        notes.append(
            f"while loading, the processes of one machine take {memory.loading_host_gib:.1f} GiB "
            f"of its memory, and this machine has {machine.host_gib:.1f}."
        )
    if config.algorithm.dynamic_sampling and config.reward.judge.enabled:
        rounds = 1 + config.algorithm.max_resample_rounds
        notes.append(f"dynamic sampling may sample and score up to {rounds} times as much.")
    return notes


def _reward_shape(config: Config) -> ModelShape | None:
    path = config.reward.model
    if path is None or "://" in path:
        return None
    return find_shape(path, source=config.model.hub)


def _count_rows(config: Config, files: Sequence[str], cwd: Path) -> tuple[int | None, list[str]]:
    """(rows of all files, or None if one is missing; a warning about it)."""
    try:
        paths = [path for name in files for path in find_files(name, base=cwd)]
    except DataNotFoundError as error:
        return None, [f"not here: {' '.join(str(error).split())}"]
    if all(path.suffix == ".parquet" for path in paths):
        from pyarrow.parquet import read_metadata

        return sum(read_metadata(path).num_rows for path in paths), []
    return len(read_data(config, files, base=cwd)), []
