"""What is printed before a run starts: the settings that matter and where they came from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlcli.config.resolved import show
from rlcli.config.schema import defaults

if TYPE_CHECKING:
    from rlcli.build import Plan


def changed_settings(plan: Plan) -> list[tuple[str, str, str]]:
    """(key, value, origin) of every setting that is not at its default."""
    standard = defaults()
    rows = []
    for key, origin in plan.resolved.sources.items():
        value = plan.resolved.value(key)
        if value != standard[key]:
            rows.append((key, show(value), origin))
    return rows


def banner_lines(plan: Plan) -> list[str]:
    """The start banner, one line per fact."""
    config = plan.config
    val = f"{len(plan.val.prompts)} held-out prompts" if plan.val else "no evaluation data"
    lines = [
        f"rlcli: {config.algorithm.name} ({config.algorithm.advantage} + {config.algorithm.loss}) "
        f"on {config.model.path}",
        f"data: {len(plan.train.prompts)} prompts, {val}",
        f"steps: {plan.num_steps} ({plan.steps_per_epoch} per epoch)",
    ]
    rows = changed_settings(plan)
    width = max((len(key) for key, _, _ in rows), default=0)
    values = max((len(value) for _, value, _ in rows), default=0)
    lines += [f"  {k:<{width}}  {v:<{min(values, 32)}}  {origin}" for k, v, origin in rows]
    return lines + [f"note: {note}" for note in plan.notes]


def plan_summary(plan: Plan) -> dict[str, Any]:
    """The same as one JSON object."""
    return {
        "preset": plan.config.algorithm.name,
        "config": plan.config.model_dump(),
        "sources": plan.resolved.sources,
        "batch": {
            "prompts": len(plan.train.prompts),
            "val_prompts": len(plan.val.prompts) if plan.val else 0,
            "prompts_per_step": plan.config.train.prompts_per_step,
            "rollouts_per_step": plan.config.train.prompts_per_step * plan.config.rollout.n,
            "mini_batch_prompts": plan.config.train.mini_batch_prompts,
            "steps_per_epoch": plan.steps_per_epoch,
            "steps": plan.num_steps,
        },
        "warnings": plan.notes,
    }
