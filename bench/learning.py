"""Held-out score before and after training on the built-in sums, for one or all algorithms.

python bench/learning.py --all [--steps 40] [--seeds 1] [--out FILE]

Every algorithm starts from the quickstart recipe (model, data, group size, learning rate) and its
own preset. Prints a Markdown table: held-out pass@1 before and after, CPU seconds of the whole
process, peak memory. Times are CPU seconds of one thread: wall time on a shared machine varies.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SETTINGS: dict[str, list[str]] = {
    # a value head starts from nothing: give it a rate at which it can learn in 40 steps
    "ppo": ["critic.lr=1e-3"],
    "dual_clip_ppo": ["critic.lr=1e-3"],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One training run."""

    algorithm: str
    seed: int
    before: float
    after: float
    best: float
    cpu_s: float
    peak_mib: float


def algorithms() -> list[str]:
    """Every algorithm preset."""
    sys.path.insert(0, str(ROOT))
    from rlcli.config.presets import list_presets

    return [preset.name for preset in list_presets() if preset.kind == "algorithm"]


def train(algorithm: str, *, steps: int, seed: int) -> Result:
    """Run the quickstart under `algorithm` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [
            sys.executable, "-m", "rlcli.cli.main", "train", "--preset", "quickstart",
            "--algo", algorithm, "--max_steps", str(steps), "--seed", str(seed),
            "--output_dir", str(run), *SETTINGS.get(algorithm, []),
        ]  # fmt: skip
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, cwd=folder)
        assert process.stdout is not None
        said = process.stdout.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{algorithm} exited with {process.returncode}:\n{said}")
        spent = usage.ru_utime + usage.ru_stime
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        scores = [line["eval/pass@1"] for line in lines if "eval/pass@1" in line]
    return Result(
        algorithm=algorithm,
        seed=seed,
        before=scores[0],
        after=scores[-1],
        best=max(scores),
        cpu_s=spent,
        peak_mib=usage.ru_maxrss / 1024,
    )


def table(results: list[Result]) -> str:
    """Markdown, one row per algorithm, medians over seeds."""
    lines = [
        "| algorithm | before | after | best | CPU s | peak MiB |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(result.algorithm for result in results):
        rows = [result for result in results if result.algorithm == name]
        middle = {
            key: statistics.median(getattr(row, key) for row in rows)
            for key in ("before", "after", "best", "cpu_s", "peak_mib")
        }
        lines.append(
            f"| {name} | {middle['before']:.1%} | {middle['after']:.1%} | {middle['best']:.1%} "
            f"| {middle['cpu_s']:.0f} | {middle['peak_mib']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("algorithms", nargs="*", help="algorithm presets")
    parser.add_argument("--all", action="store_true", help="every algorithm preset")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    args = parser.parse_args()
    names = algorithms() if args.all else args.algorithms
    if not names:
        parser.error("name an algorithm, or give --all")
    results = []
    for name in names:
        for seed in range(args.seeds):
            result = train(name, steps=args.steps, seed=seed)
            print(f"{name} seed {seed}: {result.before:.1%} -> {result.after:.1%}", flush=True)
            results.append(result)
    print()
    print(table(results))
    if args.out:
        args.out.write_text(table(results) + "\n")


if __name__ == "__main__":
    main()
