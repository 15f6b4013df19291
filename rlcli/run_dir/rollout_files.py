"""Read a run's `rollouts/step_*.jsonl`, and save responses in the same format."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from rlcli.errors import RunDirError

Which = Literal["first", "worst", "best", "zero", "truncated"]
BIDI = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029")
"""Characters that reorder or break a line, and so can disguise text."""


def rollout_file(run: Path, step: int | None) -> Path:
    """File of a step's rollouts, or of the newest step's. Raises: RunDirError if not kept."""
    folder = run / "rollouts"
    files = sorted(folder.glob("step_*.jsonl"))
    if not files:
        raise RunDirError(f"{folder} holds no rollouts yet: they are written after every step.")
    if step is None:
        return files[-1]
    path = folder / f"step_{step:06d}.jsonl"
    if path not in files:
        first, last = step_of_file(files[0]), step_of_file(files[-1])
        raise RunDirError(f"{folder} holds no step {step}; it has steps {first} to {last}.")
    return path


def step_of_file(path: Path) -> int:
    """N of `step_N.jsonl`."""
    return int(path.stem.removeprefix("step_"))


def read_rollouts(path: Path) -> list[dict[str, Any]]:
    """Rows with their number in the file, without a last line that is still being written."""
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_text("utf-8", "replace").split("\n"), start=1):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append({"row": number, **row})
    return rows


def pick(rows: list[dict[str, Any]], which: Which) -> list[dict[str, Any]]:
    """The selected rows; "best" and "worst" sort by reward and skip unscored rows."""
    if which == "first":
        return rows
    if which == "truncated":
        return [row for row in rows if row.get("finish_reason") == "length"]
    scored = [row for row in rows if isinstance(row.get("reward"), int | float)]
    if which == "zero":
        return [row for row in scored if row["reward"] == 0]
    return sorted(scored, key=lambda row: row["reward"], reverse=which == "best")


ENDS = {
    "length": "cut by the length limit",
    "turns": "cut after the last turn",
    "env": "ended by the environment",
}
"""How a response ended, by its finish reason; any other: by itself."""


def printable(text: str) -> str:
    """Text that is safe for a terminal: control and reordering characters become `\\x1b`."""
    return "".join(_shown(char) for char in text)


def _shown(char: str) -> str:
    if char in "\n\t" or (char.isprintable() and char not in BIDI):
        return char
    code = ord(char)
    is_control = code < 0x20 or 0x7F <= code < 0xA0 or 0xD800 <= code < 0xE000
    if not is_control and char not in BIDI:
        return char  # joiners, no-break spaces and similar
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def check_save(path: Path) -> None:
    """Raises: RunDirError if the file cannot be written."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise RunDirError(f"--save {path}: there is no folder {folder}. Make it first.")
    if path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise RunDirError(f"--save {path} cannot be written. Give another file.")


def save_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per row. Raises: RunDirError."""
    try:
        with path.open("w", encoding="utf-8", errors="replace") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
    except OSError as error:
        raise RunDirError(f"--save {path} cannot be written: {error.strerror}.") from error
