"""What is printed before a run starts: the settings that matter and where they came from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlcli.config.resolved import Resolved, show
from rlcli.config.schema import defaults
from rlcli.data.sets import val_name
from rlcli.terminal.i18n import width

if TYPE_CHECKING:
    from rlcli.tools.dry_run import RunSummary

WIDEST_VALUE = 32


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
