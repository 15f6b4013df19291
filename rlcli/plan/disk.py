"""Disk space of a run's checkpoints and final model, against the free disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rlcli.config.schema import Config
from rlcli.plan.memory import Models
from rlcli.plan.states import adapters, critic_parameters
from rlcli.run_dir.disk_usage import most_at_once, need_of
from rlcli.run_dir.find_run import find_run_dir
from rlcli.system.disk import GIB, folder_bytes, free_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskPlan:
    """GiB. needed: the most on disk at once. fits: None if the free disk is unknown."""

    checkpoint_gib: float
    final_gib: float
    needed_gib: float
    free_gib: float | None
    fits: bool | None


def plan_disk(config: Config, models: Models, *, free_gib: float | None) -> DiskPlan:
    """Space for the kept checkpoints, one more during a save, and the final model."""
    shape = models.policy
    need = need_of(
        config,
        weights=shape.parameters,
        stored=shape.parameters * shape.stored_bytes,
        adapters=adapters(shape, config),
        critic=0 if models.critic is None else critic_parameters(models.critic),
    )
    needed = most_at_once(config, need)
    limits = [limit for limit in (free_gib, config.run.disk_budget) if limit is not None]
    return DiskPlan(
        checkpoint_gib=need.checkpoint / GIB,
        final_gib=need.final / GIB,
        needed_gib=needed / GIB,
        free_gib=free_gib,
        fits=needed <= min(limits) * GIB if limits else None,
    )


def find_free_gib(config: Config, cwd: Path) -> float:
    """GiB available to the run directory: free space plus the space of its own checkpoints.

    Raises: RunDirError if run.resume names no run that can be resumed.
    """
    folder, _ = find_run_dir(config, cwd)
    run_dir = cwd / folder
    return (free_bytes(run_dir) + folder_bytes(run_dir / "checkpoints")) / GIB
