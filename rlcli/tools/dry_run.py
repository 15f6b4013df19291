"""Describe a run before it starts, even if data, model or GPU are missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from rlcli.config.resolved import Resolved, show
from rlcli.config.schema import Config, defaults
from rlcli.data.sets import is_held_out, overlap_notes, val_name
from rlcli.distributed.process_count import check_processes, num_local
from rlcli.doctor.gpu import count_gpus
from rlcli.errors import LaunchError, MissingResourceError
from rlcli.models.weight_files import Use
from rlcli.plan.judge import judge_notes
from rlcli.run_dir.find_run import check_name
from rlcli.setup import checks
from rlcli.setup.resources import (
    LOAD_CHECK_NOTE,
    check_context,
    check_rewards,
    find_critic,
    find_model,
    find_reward_model,
    limit_val,
    load_train,
    load_val,
    open_model,
)
from rlcli.system.hardware import usable_cores
from rlcli.terminal.i18n import width
from rlcli.trainer.run_plan import Plan, choose_device, describe_device, make_plan

T = TypeVar("T")
WIDEST_VALUE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """Description of a run. Numbers are None if the data to count is missing."""

    resolved: Resolved
    num_prompts: int | None
    num_val_prompts: int | None
    steps_per_epoch: int | None
    num_steps: int | None
    device: str | None
    notes: list[str]

    @property
    def config(self) -> Config:
        """The settings, adjusted to the data if present."""
        return self.resolved.config


def summarize_plan(plan: Plan) -> RunSummary:
    """Summary of a run that can start."""
    num_val = len(plan.val.prompts) if plan.val else 0
    return RunSummary(
        resolved=plan.resolved,
        num_prompts=len(plan.train.prompts),
        num_val_prompts=num_val,
        steps_per_epoch=plan.steps_per_epoch,
        num_steps=plan.num_steps,
        device=describe_device(plan.device),
        notes=[*plan.notes, *judge_notes(plan.config, steps=plan.num_steps, num_val=num_val)],
    )


def launch_notes(resolved: Resolved, env: Mapping[str, str], *, num_processes: int) -> list[str]:
    """What the launch variables, train.nnodes and the processes of this machine come to.

    Raises: ConfigError for variables that cannot be; LaunchError where nodes or GPUs are missing.
    """
    import torch

    gpus, cores = torch.cuda.device_count(), usable_cores()
    return check_processes(
        resolved, env, num_processes=num_processes, num_visible_gpus=gpus, num_cores=cores
    )


def survey(resolved: Resolved, env: Mapping[str, str], *, is_rank: bool = False) -> RunSummary:
    """Everything a start checks; a missing file, model or GPU becomes a warning.

    is_rank: a launcher has started the processes. Raises: UsageError for anything
    else that is wrong.
    """
    check_name(resolved.config)
    if not is_rank:
        num_processes = num_local(resolved.config, count_gpus(resolved.config.train.device, env))
        try:
            notes = launch_notes(resolved, env, num_processes=num_processes)
            resolved = resolved.with_notes(*notes)
        except LaunchError as error:
            resolved = resolved.with_notes(_warning("training would refuse", error))
    try:
        found = summarize_plan(make_plan(resolved, is_dry=True))
    except MissingResourceError:
        found = _partial(checks.check_engines(checks.check(resolved)), env)
    return replace(found, notes=[*found.notes, LOAD_CHECK_NOTE])


def _partial(resolved: Resolved, env: Mapping[str, str]) -> RunSummary:
    """The survey of a run that lacks something: every part is tried by itself."""
    config = resolved.config
    notes = [*resolved.notes]

    def attempt(part: Callable[[], T]) -> T | None:
        try:
            return part()
        except MissingResourceError as error:
            notes.append(_warning("not here", error))
            return None

    device = attempt(lambda: describe_device(choose_device(config)))
    data = attempt(lambda: load_train(config))
    notes += data.notes if data else []
    train = data.rows if data else None
    if not is_held_out(config.data.val):
        val = attempt(lambda: load_val(config))
    else:
        val = limit_val(config, data.held_out) if data else None
    if train and val:
        notes += overlap_notes(train, val)
    model_dir = attempt(lambda: find_model(config, config.model.path, merges=False))
    if model_dir is not None:
        use: Use = "adapters" if config.lora.rank else "train"
        model = open_model(config, model_dir, use, where=resolved.where("model.path"))
        check_context(resolved, model.positions)
        attempt(lambda: find_critic(resolved, model_dir, model.config))
    elif (critic := config.critic.path) is not None:
        attempt(lambda: find_model(config, critic, merges=False))
    reward_dir = attempt(lambda: find_reward_model(resolved))
    rows = [train or [], val or []]
    notes += attempt(lambda: check_rewards(resolved, rows, reward_dir, env)) or []
    steps_per_epoch = num_steps = None
    if train is not None:
        config, arithmetic = checks.batch_arithmetic(config, len(train))
        batches = checks.batching(config, len(train))
        steps_per_epoch, num_steps = batches.steps_per_epoch, batches.num_steps
        notes += arithmetic
    else:
        notes.append(checks.step_line(config))
    return RunSummary(
        resolved=resolved.clamp_to_data(config),
        num_prompts=None if train is None else len(train),
        num_val_prompts=None if val is None else len(val),
        steps_per_epoch=steps_per_epoch,
        num_steps=num_steps,
        device=device,
        notes=notes,
    )


def prepare(resolved: Resolved, env: Mapping[str, str], *, is_rank: bool) -> tuple[Plan, list[str]]:
    """The plan of a run that can start, and its banner.

    is_rank: a launcher has started the processes. Raises: UsageError.
    """
    if not is_rank:
        resolved = resolved.with_notes(*launch_notes(resolved, env, num_processes=1))
    plan = make_plan(resolved)
    return plan, banner_lines(summarize_plan(plan))


def _warning(what: str, error: Exception) -> str:
    return f"{what}: {' '.join(str(error).split())}"


def changed_settings(resolved: Resolved) -> list[tuple[str, str, str]]:
    """(key, value, origin) of every setting that is not at its default."""
    standard = defaults()
    return [
        (key, show(value), resolved.sources[key])
        for key, value in resolved.values().items()
        if value != standard[key]
    ]


def setting_lines(rows: list[tuple[str, str, str]]) -> list[str]:
    """`  key  value  origin`, in columns."""
    keys = max((len(key) for key, _, _ in rows), default=0)
    values = min(max((width(value) for _, value, _ in rows), default=0), WIDEST_VALUE)
    return [
        f"  {key:<{keys}}  {value}{' ' * (values - width(value))}  {origin}"
        for key, value, origin in rows
    ]


def banner_lines(survey: RunSummary) -> list[str]:
    """The start banner, one line per fact."""
    config = survey.config
    lines = [
        f"rlcli: {config.algorithm.name} ({config.algorithm.advantage} + {config.algorithm.loss}) "
        f"on {config.model.path}",
        f"data: {_prompts(survey.num_prompts)}, {_held_out(survey)}",
    ]
    if survey.device is not None:
        lines.append(f"device: {survey.device}")
    if survey.num_steps is not None:
        lines.append(f"steps: {survey.num_steps} ({survey.steps_per_epoch} per epoch)")
    lines += setting_lines(changed_settings(survey.resolved))
    return lines + [f"note: {note}" for note in survey.notes]


def _prompts(number: int | None) -> str:
    return "prompts not counted" if number is None else f"{number} prompts"


def _held_out(survey: RunSummary) -> str:
    number, data = survey.num_val_prompts, survey.config.data
    if number is None:
        return "held-out prompts not counted"
    if not number:
        return "no evaluation data"
    return f"{number} held-out prompts ({val_name(data.train, data.val)})"


def summary(survey: RunSummary) -> dict[str, Any]:
    """The same as one JSON object."""
    train = survey.config.train
    return {
        "preset": survey.config.algorithm.name,
        "config": survey.config.model_dump(),
        "sources": survey.resolved.sources,
        "batch": {
            "prompts": survey.num_prompts,
            "val_prompts": survey.num_val_prompts,
            "val_data": val_name(survey.config.data.train, survey.config.data.val)
            if survey.num_val_prompts
            else None,
            "prompts_per_step": train.prompts_per_step,
            "rollouts_per_step": train.prompts_per_step * survey.config.rollout.n,
            "mini_batch_prompts": train.mini_batch_prompts,
            "tokens_per_micro_batch": train.tokens_per_micro_batch if train.dynamic_batch else None,
            "micro_batch_size": None if train.dynamic_batch else train.micro_batch_size,
            "steps_per_epoch": survey.steps_per_epoch,
            "steps": survey.num_steps,
        },
        "device": survey.device,
        "warnings": survey.notes,
    }
