"""The run directory, and the record of it that a launcher's store keeps over restarts."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rlcli.distributed.rank_env import AGENT
from rlcli.run_dir.checkpoint import Resume
from rlcli.run_dir.find_run import open_run_dir
from rlcli.run_dir.folder import RunDir

if TYPE_CHECKING:
    from torch.distributed import Store

    from rlcli.config.resolved import Resolved


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownRun:
    """The absolute path of a run directory, and the checkpoint to resume from.

    stamp: of status.json before the run began. is_held: the agent holds the directory, not rank 0.
    """

    path: Path
    resume: Resume
    stamp: list[int]
    is_held: bool = False

    @property
    def has_begun(self) -> bool:
        """Whether rank 0 has written status.json since.

        By then it has resumed from its checkpoint, and set later ones aside.
        """
        return status_stamp(self.path) != self.stamp


def find_run(resolved: Resolved, cwd: Path) -> tuple[RunDir, KnownRun]:
    """The run directory, and its record for restarts. Raises: UsageError."""
    run_dir, resume = open_run_dir(resolved, cwd)
    run_dir = RunDir((cwd / run_dir.path).absolute(), elsewhere=run_dir.elsewhere)
    stamp = status_stamp(run_dir.path)
    return run_dir, KnownRun(path=run_dir.path, resume=resume, stamp=stamp)


def hold_run(
    resolved: Resolved, cwd: Path, *, restart_count: int, launcher_store: Store | None
) -> tuple[RunDir, Resume]:
    """The locked run directory and the checkpoint to resume from, the same after a restart.

    The launcher's store keeps the directory. A restart resumes from the requested checkpoint until
    the run has begun, and from the newest one after that. Raises: UsageError.
    """
    before = None if launcher_store is None else known_run(launcher_store, cwd)
    if before is not None:
        run_dir = RunDir(before.path)
        resume: Resume = "newest" if before.has_begun else before.resume
        if not before.is_held:
            run_dir.hold(resumes=resume != "no")
        return run_dir, resume
    if restart_count and resolved.config.run.resume == "never":
        resolved = resolved.override({"run.resume": "auto"})
    run_dir, run = find_run(resolved, cwd)
    run_dir.hold(resumes=run.resume != "no")
    if launcher_store is not None:
        remember_run(launcher_store, cwd, run)
    return run_dir, run.resume


def remember_run(launcher_store: Store, cwd: Path, run: KnownRun) -> None:
    """Store the run for restarted ranks."""
    known = asdict(run) | {"path": str(run.path)}
    launcher_store.set(_run_key(cwd), json.dumps(known))


def known_run(launcher_store: Store, cwd: Path) -> KnownRun | None:
    """The run of this command line, if the store has one."""
    key = _run_key(cwd)
    if not launcher_store.check([key]):
        return None
    known = json.loads(launcher_store.get(key))
    return KnownRun(**known | {"path": Path(known["path"])})


def _run_key(cwd: Path) -> str:
    """One key under rlcli's agent; elsewhere one per command: a script may train twice."""
    if AGENT in os.environ:
        return "run"
    return "run/" + hashlib.sha256(repr((cwd, sys.argv[1:])).encode()).hexdigest()


def status_stamp(path: Path) -> list[int]:
    """Identifies one version of status.json; empty without the file."""
    try:
        found = (path / "status.json").stat()
    except OSError:
        return []
    return [found.st_ino, found.st_mtime_ns]
