"""Read runs from their files and tabulate them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlcli.config.base import leaves
from rlcli.config.schema import Config
from rlcli.monitor.trend import variance_between_steps
from rlcli.run_dir.folder import RunDir
from rlcli.run_dir.metrics_file import read_metrics

USAGE = "usage.json"
"""In a run directory: what its processes took, where a comparison started them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a run took. cpu_s, peak_mib: of the process and its children, the largest's memory.

    is_whole: every part of the run was measured, from the start of its process to its end.
    """

    wall_s: float
    cpu_s: float | None
    peak_mib: float | None
    is_whole: bool = True

    def then(self, later: Usage) -> Usage:
        """This part of a run and the one after it."""
        return Usage(
            wall_s=self.wall_s + later.wall_s,
            cpu_s=(self.cpu_s or 0.0) + (later.cpu_s or 0.0),
            peak_mib=max(self.peak_mib or 0.0, later.peak_mib or 0.0),
            is_whole=self.is_whole and later.is_whole,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Numbers from a run's files. scores: held out, in order; rewards: mean of every step."""

    path: Path
    state: str
    config: Config
    scores: list[float]
    rewards: list[float]
    usage: Usage


def read_result(run: Path) -> Result:
    """Read a run directory. Raises: RunDirError if no run was started in it."""
    run_dir = RunDir(run)
    config = run_dir.config()
    steps, evaluations = read_metrics(run_dir.metrics)
    return Result(
        path=run,
        state=run_dir.state(),
        config=config,
        scores=[row["eval/pass@1"] for row in evaluations if "eval/pass@1" in row],
        rewards=[row["reward_mean"] for row in steps if "reward_mean" in row],
        usage=read_usage(run) or _usage_of_steps([*steps, *evaluations]),
    )


def read_usage(run: Path) -> Usage | None:
    """Resource use measured by a comparison; None if no comparison started the run."""
    try:
        return Usage(**json.loads((run / USAGE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _usage_of_steps(metrics: Sequence[Mapping[str, float]]) -> Usage:
    """Resource use recorded by the run: steps and evaluations, without start and end."""
    wall = sum(row.get("time/step_s") or row.get("time/eval_s") or 0.0 for row in metrics)
    sizes = [row["memory/rss_gib"] for row in metrics if "memory/rss_gib" in row]
    peak = max(sizes) * 1024 if sizes else None
    return Usage(wall_s=wall, cpu_s=None, peak_mib=peak, is_whole=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Runs that differ in nothing but the seed. Means over them; peak_mib is the largest.

    reward_variance: half the mean squared change of the reward from one step to the next, so that
    learning itself does not count. None: not in the files.
    """

    name: str
    algorithm: str
    seeds: list[int]
    runs: list[str]
    before: float | None
    after: float | None
    after_std: float | None
    best: float | None
    reward_variance: float | None
    wall_s: float
    cpu_s: float | None
    peak_mib: float | None
    is_whole: bool


def tabulate(results: Sequence[Result]) -> list[Row]:
    """One row per algorithm and settings, in the order given."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(_key(result.config), []).append(result)
    names = [group[0].config.algorithm.name for group in groups.values()]
    return [
        _row(group, name if names.count(name) == 1 else group[0].path.name)
        for group, name in zip(groups.values(), names, strict=True)
    ]


def _row(group: Sequence[Result], name: str) -> Row:
    scored = [result.scores for result in group if result.scores]
    after = [scores[-1] for scores in scored]
    usages = [result.usage for result in group]
    variances = [variance_between_steps(result.rewards) for result in group]
    return Row(
        name=name,
        algorithm=group[0].config.algorithm.name,
        seeds=[result.config.run.seed for result in group],
        runs=[str(result.path) for result in group],
        before=_mean([scores[0] for scores in scored]),
        after=_mean(after),
        after_std=statistics.stdev(after) if len(after) > 1 else None,
        best=_mean([max(scores) for scores in scored]),
        reward_variance=_mean(variances),
        wall_s=statistics.fmean(usage.wall_s for usage in usages),
        cpu_s=_mean([usage.cpu_s for usage in usages]),
        peak_mib=max((u.peak_mib for u in usages if u.peak_mib is not None), default=None),
        is_whole=all(usage.is_whole for usage in usages),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return statistics.fmean(there) if there else None


def _key(config: Config) -> str:
    values = {key: value for key, value in leaves(config).items() if not key.startswith("run.")}
    return json.dumps(values, sort_keys=True, default=str)


def unlike_settings(results: Sequence[Result]) -> dict[str, list[Any]]:
    """Setting -> values, for settings that differ between runs; not the algorithm's or the seed."""
    unlike: dict[str, list[Any]] = {}
    all_values = [leaves(result.config) for result in results]
    for key in all_values[0] if all_values else ():
        found = [values[key] for values in all_values]
        distinct = [value for at, value in enumerate(found) if value not in found[:at]]
        if len(distinct) > 1 and not key.startswith(("run.", "algorithm.")):
            unlike[key] = distinct
    return unlike
