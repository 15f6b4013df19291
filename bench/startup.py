"""Wall seconds until something happens: help, lists, a refusal, the first reward, a whole run.

python bench/startup.py [--repeats 5] [--no-run] [--out FILE]

Every row is a process of its own, started as many times as --repeats says, in turn with the other
rows; the table has the median and the range. ./train.sh is measured where its .venv is set up. Run
it on an idle machine: this is wall time. The quickstart runs with as many threads as it likes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RLCLI = (sys.executable, "-m", "rlcli.cli.main")
SCRIPT = (str(ROOT / "train.sh"),)
HAS_VENV = (ROOT / ".venv" / "bin" / "python").is_file()
TRAIN = SCRIPT if HAS_VENV else (*RLCLI, "train")
QUICKSTART = (*TRAIN, "--preset", "quickstart")
REWARD_LINE = "Reward: "


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A command that must end with `exit_code`. limit_s: what it may take; None: no limit."""

    name: str
    words: Sequence[str]
    limit_s: float | None = None
    exit_code: int = 0


STARTS = [
    Start(name="`rlcli --help`", words=(*RLCLI, "--help"), limit_s=0.4),
    Start(name="`rlcli train --help`", words=(*RLCLI, "train", "--help"), limit_s=0.4),
    Start(name="`rlcli presets list`", words=(*RLCLI, "presets", "list"), limit_s=0.5),
    Start(
        name="a misspelt setting refused",
        words=(*RLCLI, "train", "--preset", "quickstart", "train.lrr=1"),
        limit_s=1.0,
        exit_code=2,
    ),
]
if HAS_VENV:
    STARTS.append(Start(name="`./train.sh --help`", words=(*SCRIPT, "--help")))

FIRST_REWARD, WHOLE_RUN = "quickstart: first reward line", "quickstart: whole run"
RUN_LIMITS_S = {FIRST_REWARD: 15.0, WHOLE_RUN: 90.0}


def wall_s(start: Start, folder: Path) -> float:
    """Seconds from the start of the command to its end."""
    begun = time.perf_counter()
    done = subprocess.run(start.words, cwd=folder, env=environment(), capture_output=True)
    took = time.perf_counter() - begun
    if done.returncode != start.exit_code:
        raise SystemExit(f"{' '.join(start.words)} exited {done.returncode}:\n{done.stderr!r}")
    return took


def run_s(folder: Path) -> dict[str, float]:
    """Seconds to the first line with a reward and to the end of a quickstart run."""
    first: float | None = None
    begun = time.perf_counter()
    with subprocess.Popen(
        QUICKSTART, cwd=folder, env=environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        for line in process.stdout:
            if first is None and REWARD_LINE in line:
                first = time.perf_counter() - begun
    took = time.perf_counter() - begun
    if process.returncode or first is None:
        raise SystemExit(f"{' '.join(QUICKSTART)} exited {process.returncode}, see above")
    return {FIRST_REWARD: first, WHOLE_RUN: took}


def environment() -> dict[str, str]:
    """This process's, with the checkout importable and no thread settings."""
    kept = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    return kept | {"PYTHONPATH": str(ROOT)}


def measure(*, repeats: int, with_run: bool) -> dict[str, list[float]]:
    """Seconds of every row, one number per repeat; the first of each warms the disk up."""
    found: dict[str, list[float]] = {start.name: [] for start in STARTS}
    if with_run:
        found |= {FIRST_REWARD: [], WHOLE_RUN: []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as name:
            for start in STARTS:
                found[start.name].append(wall_s(start, Path(name)))
            for row, seconds in run_s(Path(name)).items() if with_run else ():
                found[row].append(seconds)
    return found


def table(found: dict[str, list[float]]) -> str:
    """Markdown: the median of each row, the range, and what it may take."""
    limits = {start.name: start.limit_s for start in STARTS} | RUN_LIMITS_S
    lines = ["| what | seconds | range | limit |", "|---" * 4 + "|"]
    for name, seconds in found.items():
        limit = limits[name]
        shown = "" if limit is None else f"< {limit:g}"
        spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
        lines.append(f"| {name} | {statistics.median(seconds):.2f} | {spread} | {shown} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-run", action="store_true", help="leave the quickstart's run out")
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    args = parser.parse_args()
    text = table(measure(repeats=args.repeats, with_run=not args.no_run))
    words = f"`{' '.join(QUICKSTART)}`".replace(str(ROOT), ".").replace(sys.executable, "python")
    text = f"{text}\n\nThe quickstart is {words}."
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
