"""`rlcli` with the CPU seconds of a training run noted at every evaluation.

python bench/clocked_run.py CURVE.jsonl train ARGUMENT ...

The arguments are those of `rlcli`, and the run is the one that they name. CURVE.jsonl gets a line
per evaluation: step, score, and cpu_s, which counts from the end of the first evaluation, leaves
all evaluations out and takes worker processes in.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from rlcli.cli.main import main
from rlcli.trainer import loop
from rlcli.trainer.run import Run
from rlcli.types import StepRecord


def cpu_s() -> float:
    """CPU seconds of this process and its children, running or ended."""
    ended = os.times()
    total = time.process_time() + ended.children_user + ended.children_system
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            times = child.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def clock_evaluations(curve: Path) -> None:
    """Have every evaluation of this process write a line to `curve`."""
    evaluate = loop.evaluate
    left_out: list[float] = []

    def clocked(run: Run, *, step: int) -> StepRecord:
        begun = cpu_s()
        record = evaluate(run, step=step)
        row = {
            "step": step,
            "score": record["eval/pass@1"],
            "cpu_s": begun - sum(left_out) if left_out else 0.0,
        }
        with curve.open("a") as file:
            file.write(json.dumps(row) + "\n")
        # the first evaluation ends what is left out before the clock starts
        left_out.append(cpu_s() - begun if left_out else cpu_s())
        return record

    loop.evaluate = clocked


if __name__ == "__main__":
    clock_evaluations(Path(sys.argv[1]))
    main(sys.argv[2:])
