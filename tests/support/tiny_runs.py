"""Runs of a second's fraction on a tiny model, and everything one can see of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from rlcli.config.resolver import resolve
from rlcli.trainer.run_plan import make_plan
from rlcli.trainer.session import run_session

UNSTABLE = ("time/", "tokens_per_s", "memory/")
REWARD = """\
import os
import time

def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    return (sum(map(ord, solution_str)) % 7 + len(ground_truth)) / 11

def coarse(data_source, solution_str, ground_truth, extra_info=None):
    return float(sum(map(ord, solution_str)) % 2)

def parts(data_source, solution_str, ground_truth, extra_info=None):
    a, b = sum(map(ord, solution_str)) % 5, len(solution_str) % 3
    return {"score": a + b, "a": a, "b": b}

def printing(data_source, solution_str, ground_truth, extra_info=None):
    print("scored by", os.getpid(), flush=True)
    time.sleep(0.01)
    return len(solution_str) / 11
"""


def write_inputs(folder: Path) -> None:
    """Two data files with two prompt columns, and a file of rewards."""
    for name, first in (("a", 3), ("b", 40)):
        rows = [
            {
                "prompt": f"{first + i} + {i} = " + "a b " * (i % 3),
                "question": f"the answer is {i}",
                "ground_truth": str(first + 2 * i),
                "data_source": "x",
            }
            for i in range(6)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "reward.py").write_text(REWARD)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepView:
    """What a run left behind. `passes`: (rows, tokens) of every pass through an MLP.

    `scorers`: the number of processes that printed while they scored.
    """

    place: Path
    notes: list[str]
    metrics: list[dict[str, Any]]
    weights: dict[str, str]
    files: list[str]
    scorers: int
    passes: list[tuple[int, ...]]

    def differences(self, other: StepView) -> list[str]:
        """The names of what differs, place and notes aside: those may merely repeat a setting."""
        names = ("metrics", "weights", "files", "scorers", "passes")
        return [name for name in names if getattr(self, name) != getattr(other, name)]


def tiny_run(folder: Path, name: str, overrides: Sequence[str], **more: Any) -> StepView:
    """The run of `overrides` in `folder / name`, through the path that the command takes."""
    arguments: dict[str, Any] = {"flags": {}, "files": [], "env": {}, "cwd": folder}
    given = [f"run.output_dir={folder / name}", *overrides]
    plan = make_plan(resolve(overrides=given, **arguments | more))
    passes: list[tuple[int, ...]] = []

    def count(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if type(module).__name__.endswith("MLP"):
            passes.append(tuple(inputs[0].shape[:-1]))

    hook = nn.modules.module.register_module_forward_pre_hook(count)
    try:
        outcome = run_session(plan, folder, [], quiet=True)
    finally:
        hook.remove()
    place = outcome.run_dir
    return StepView(place=place, notes=plan.notes, passes=passes, **_left_behind(place))


def _left_behind(run: Path) -> Mapping[str, Any]:
    metrics = [
        {key: value for key, value in json.loads(line).items() if not key.startswith(UNSTABLE)}
        for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    files = sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
    weights = {
        name: hashlib.sha256((run / name).read_bytes()).hexdigest()
        for name in files
        if name.endswith(".safetensors")
    }
    log = run / "reward.log"
    said = log.read_text().splitlines() if log.is_file() else []
    scorers = len({line for line in said if "scored by" in line})
    return {"metrics": metrics, "files": files, "weights": weights, "scorers": scorers}
