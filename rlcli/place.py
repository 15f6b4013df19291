"""Which of a run's processes this one is, as the supervisor that started it has told it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlcli.checkpoint import Resume

RUN_DIR, RELAUNCHED, RESUME = "RLCLI_RUN_DIR", "RLCLI_RELAUNCHED", "RLCLI_RESUME"
"""Variables beside torch's own: RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE."""
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One of `size` processes, `local_size` of them on this machine.

    run_dir: absolute, and held by the supervisor. relaunches: how often the run was started again
    after a rank had died. resume: what rank 0 goes on from.
    """

    rank: int
    local_rank: int
    size: int
    local_size: int
    run_dir: Path
    relaunches: int
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


def read_place(env: Mapping[str, str]) -> Place | None:
    """The place of this process; None for one that no supervisor started."""
    if RUN_DIR not in env:
        return None
    return Place(
        rank=int(env["RANK"]),
        local_rank=int(env["LOCAL_RANK"]),
        size=int(env["WORLD_SIZE"]),
        local_size=int(env["LOCAL_WORLD_SIZE"]),
        run_dir=Path(env[RUN_DIR]),
        relaunches=int(env.get(RELAUNCHED, "0")),
        resume=_resume(env.get(RESUME, "no")),
    )


def _resume(text: str) -> Resume:
    if text == "no" or text == "newest":
        return text
    return int(text)
