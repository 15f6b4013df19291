"""Rank, world size and run directory of one process of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlcli.checkpoint import Resume

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One of `size` processes, `local_size` of them on this machine.

    run_dir: absolute, and held by rank 0. resume: the checkpoint that rank 0 goes on from.
    """

    rank: int
    local_rank: int
    size: int
    local_size: int
    run_dir: Path
    resume: Resume

    @property
    def is_one_machine(self) -> bool:
        """Whether all processes are on this machine."""
        return self.local_size == self.size

    @property
    def log(self) -> Path:
        """Where this process says what is for no terminal."""
        return log_path(self.run_dir, self.rank)


def log_path(run_dir: Path, rank: int) -> Path:
    """What a rank other than 0 says is in its own file."""
    return run_dir / f"rank_{rank}.log"


def read_resume(text: str) -> Resume:
    """The checkpoint to go on from, out of a launcher's store."""
    if text == "no" or text == "newest":
        return text
    return int(text)
