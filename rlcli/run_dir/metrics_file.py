"""Read a run's JSON-lines files, even if they are incomplete or damaged."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def read_rows(path: Path, *, last_bytes: int | None = None) -> list[dict[str, Any]]:
    """The objects with a step in a JSON-lines file, in order; [] if there is no file.

    Lines that are broken, still being written, or cut by `last_bytes` are skipped.
    """
    try:
        with path.open("rb") as file:
            if last_bytes is not None:
                file.seek(max(0, file.seek(0, os.SEEK_END) - last_bytes))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    rows = []
    for line in text.split("\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and is_number(row.get("step")):
            rows.append(row)
    return rows


def is_number(value: Any) -> bool:
    """Whether `value` is a number that a float can hold; booleans are not."""
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and -sys.float_info.max <= value <= sys.float_info.max


def read_metrics(
    path: Path, *, last_bytes: int | None = None
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """(training steps, evaluations) of a metrics.jsonl in order, numbers only.

    If a step occurs twice, the later line counts: it is from the resumed run.
    """
    steps: dict[int, dict[str, float]] = {}
    evaluations: dict[int, dict[str, float]] = {}
    for row in read_rows(path, last_bytes=last_bytes):
        place = steps if "epoch" in row else evaluations
        place[int(row["step"])] = {key: value for key, value in row.items() if is_number(value)}
    return [steps[step] for step in sorted(steps)], [evaluations[s] for s in sorted(evaluations)]


def newest_metrics(path: Path, *, last_bytes: int) -> dict[str, float]:
    """Newest value of every metric in the last bytes of a metrics.jsonl."""
    steps, evaluations = read_metrics(path, last_bytes=last_bytes)
    newest: dict[str, float] = {}
    for row in sorted([*steps, *evaluations], key=lambda row: row["step"]):
        newest |= row
    return newest
