"""Held-out score before and after training on the built-in sums, for one or all algorithms.

python bench/learning.py --all [--steps 40] [--seeds 1] [--out FILE]
python bench/learning.py --sums FOLDER [--seeds 5] [--out FILE] [--settings WORD ...]

Every algorithm starts from the quickstart recipe (model, data, group size, learning rate) and its
own preset. Prints a Markdown table: held-out pass@1 before and after, CPU seconds of the whole
process, peak memory. Times are CPU seconds of one thread: wall time on a shared machine varies.
--sums learns the task that TRL was measured on instead, and prints the CPU seconds to 0.70 and
0.85 held out (learning_sums.py); --settings, given last, replaces the words it trains with.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import learning_sums

from rlcli.config.presets import list_presets
from rlcli.config.schema import Config
from rlcli.tools.compare import Job, Result, Stop, read_result, run_job, tabulate

ROOT = Path(__file__).resolve().parent.parent
SETTINGS: dict[str, list[str]] = {
    # a value head starts from nothing: give it a rate at which it can learn in 40 steps
    "ppo": ["critic.lr=1e-3"],
    "dual_clip_ppo": ["critic.lr=1e-3"],
}


def train(algorithm: str, folder: Path, *, steps: int, seed: int) -> Result:
    """Run the quickstart under `algorithm` in a process of its own."""
    words = ["--preset", "quickstart", "--max_steps", str(steps), *SETTINGS.get(algorithm, [])]
    run = folder / f"{algorithm}-seed{seed}"
    job = Job(algorithm=algorithm, seed=seed, folder=run, words=tuple(words), wanted=Config())
    stop = Stop()
    with stop.listening():
        failure = run_job(job, stop)
    if failure is not None:
        raise SystemExit(f"{job.label} exited with {failure.exit_code}:\n{job.log.read_text()}")
    return read_result(run)


def table(results: Sequence[Result]) -> str:
    """Markdown, one row per algorithm, means over seeds; memory is the largest."""
    lines = [
        "| algorithm | before | after | best | CPU s | peak MiB |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.name} | {row.before:.1%} | {row.after:.1%} | {row.best:.1%} "
        f"| {row.cpu_s:.0f} | {row.peak_mib:.0f} |"
        for row in tabulate(results)
    ]
    return "\n".join(lines)


def train_all(names: Sequence[str], *, steps: int, seeds: int) -> str:
    """The table of these algorithms on the built-in sums."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            for seed in range(seeds):
                result = train(name, Path(folder), steps=steps, seed=seed)
                first, last = result.scores[0], result.scores[-1]
                print(f"{name} seed {seed}: {first:.1%} -> {last:.1%}", flush=True)
                results.append(result)
    return table(results)


def learn_sums(source: Path, settings: Sequence[str], *, seeds: int) -> str:
    """The two tables of the task in `source`: the curve, and the seconds to the targets."""
    curves = []
    with tempfile.TemporaryDirectory() as folder:
        task = learning_sums.write_task(source, Path(folder))
        for seed in range(seeds):
            curve = learning_sums.learn(task, settings, folder=Path(folder), seed=seed)
            last = f"{curve.scores[-1]:.3f} after {curve.cpu_s[-1]:.0f} CPU s"
            print(f"seed {seed}: {last}", flush=True)
            curves.append(curve)
    words = f"Settings: `{' '.join(settings)}`"
    tables = learning_sums.curve_table(curves), learning_sums.target_table(curves)
    return "\n\n".join([words, *tables])


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("algorithms", nargs="*", help="algorithm presets")
    parser.add_argument("--all", action="store_true", help="every algorithm preset")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seeds", type=int, help="of each; 5 with --sums, else 1")
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    parser.add_argument("--sums", type=Path, metavar="FOLDER", help="with warm/ and heldout.json")
    parser.add_argument("--settings", nargs=argparse.REMAINDER, help="with --sums: how to learn")
    args = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if args.sums:
        settings = args.settings or learning_sums.SETTINGS
        text = learn_sums(args.sums, settings, seeds=args.seeds or 5)
    else:
        presets = [preset.name for preset in list_presets() if preset.kind == "algorithm"]
        names = presets if args.all else args.algorithms
        if not names:
            parser.error("name an algorithm, or give --all or --sums FOLDER")
        text = train_all(names, steps=args.steps, seeds=args.seeds or 1)
    print(f"\n{text}")
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
