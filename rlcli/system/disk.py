"""Folder sizes, free disk space, and deleting files to stay within a run's disk budget."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

GIB = 2**30


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below `folder`; 0 if it does not exist. Files may vanish meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_size if path.is_file() and not path.is_symlink() else 0
    return total


def gib(num_bytes: float) -> str:
    """A size with three digits: `3.12 GiB`, `41.0 MiB`."""
    units = (("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10))
    unit, size = next((pair for pair in units if num_bytes >= pair[1]), units[-1])
    digits = max(0, 2 - int(math.log10(max(1.0, num_bytes / size))))
    return f"{num_bytes / size:.{digits}f} {unit}"


def free_bytes(path: Path) -> int:
    """Free bytes on the disk of `path`, which need not exist yet."""
    here = path.absolute()
    while not here.exists():
        here = here.parent
    return shutil.disk_usage(here).free


class DiskBudget:
    """Keeps a run directory within `limit_gib`; None for no limit."""

    def __init__(self, run_dir: Path, limit_gib: float | None) -> None:
        self.run_dir, self.limit_gib = run_dir, limit_gib
        self._told: set[str] = set()

    def make_room(self, spare: Sequence[Path], *, coming: int = 0) -> list[str]:
        """Delete files until `coming` more bytes fit; returns notes, each kind once.

        Deletes the oldest rollouts first, then folders set aside, then `spare` in its order.
        """
        if self.limit_gib is None:
            return []
        used = folder_bytes(self.run_dir)
        over = used + coming - self.limit_gib * GIB
        if coming:
            over = max(over, coming - free_bytes(self.run_dir))
        rollouts = sorted((self.run_dir / "rollouts").glob("step_*.jsonl"))[:-1]
        aside = sorted((self.run_dir / "checkpoints").glob("aside_step_*"))
        notes: list[str] = []
        for what, path in [
            *(("the oldest rollouts/step_*.jsonl are deleted", path) for path in rollouts),
            *(("fewer checkpoints are kept", path) for path in (*aside, *spare)),
        ]:
            if over <= 0:
                return notes
            over -= delete(path)
            notes += self._once(f"{what} to stay within it.")
        if over > 0 and not coming:
            notes += self._once(f"the run takes {gib(self.limit_gib * GIB + over)} all the same.")
        return notes

    def _once(self, text: str) -> list[str]:
        if text.partition(" takes ")[0] in self._told:
            return []
        self._told.add(text.partition(" takes ")[0])
        return [f"run.disk_budget={self.limit_gib:g} GiB: {text}"]


def delete(path: Path) -> int:
    """Remove a file or folder; returns the bytes freed."""
    if path.is_dir():
        size = folder_bytes(path)
        shutil.rmtree(path, ignore_errors=True)
        return size
    with suppress(OSError):
        size = path.stat().st_size
        path.unlink()
        return size
    return 0
