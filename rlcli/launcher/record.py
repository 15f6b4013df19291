"""The run directory as an agent uses it: to hold it, and to read and write the run's status."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rlcli.distributed.known_run import KnownRun, status_stamp
from rlcli.errors import Paused
from rlcli.run_dir.checkpoint import Resume, saved_steps
from rlcli.run_dir.folder import RunDir, State
from rlcli.system.signals import BY_CTRL_C, INTERRUPTED

LOCK = "run.lock"


@contextmanager
def held(run_dir: RunDir, *, resumes: bool) -> Iterator[None]:
    """Hold the directory. A directory made here is removed afterwards if no run began in it.

    Raises: RunDirError.
    """
    path = run_dir.path
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    had_lock = (path / LOCK).exists()
    run_dir.hold(resumes=resumes)
    try:
        yield
    finally:
        with suppress(OSError):
            files = list(path.iterdir())
            if not had_lock and all(_is_log(file) or file.name == LOCK for file in files):
                for file in files:
                    file.unlink()
                for folder in made:
                    folder.rmdir()
        run_dir.release()


def _is_log(file: Path) -> bool:
    return file.name.startswith("rank_") and file.suffix == ".log"


class Record:
    """Reads and writes status.json of the agent's run; nodes other than 0 have no run."""

    def __init__(self, run: KnownRun | None) -> None:
        self.run = run
        self._at_start = self._stamp()

    @property
    def path(self) -> Path | None:
        """The run directory."""
        return None if self.run is None else self.run.path

    @property
    def has_begun(self) -> bool:
        """Whether rank 0 has written status.json in this session."""
        return self.run is not None and self.run.has_begun

    def start(self) -> None:
        """Call before all ranks are started, for the first time or again."""
        self._at_start = self._stamp()

    def _stamp(self) -> list[int]:
        return [] if self.run is None else status_stamp(self.run.path)

    @property
    def has_started(self) -> bool:
        """Whether rank 0 of this start has written status.json: before, it has nothing to save."""
        return self._stamp() != self._at_start

    @property
    def has_ended(self) -> bool:
        """Whether rank 0 has written how the run ended."""
        return self.has_begun and self._status().get("state") not in (None, "running")

    def exit_code(self, preempt_exit_code: int) -> int | None:
        """Exit code for the final state that rank 0 has written; None before it has ended."""
        if not self.has_ended:
            return None
        status = self._status()
        if status["state"] == "preempted":
            return INTERRUPTED if status.get("reason") == BY_CTRL_C else preempt_exit_code
        return {"finished": 0, "paused": Paused.exit_code}.get(status["state"], 1)

    @property
    def step(self) -> int:
        """Steps done at the checkpoint from which the next start resumes."""
        if self.run is None:
            return 0
        resume: Resume = "newest" if self.has_begun else self.run.resume
        if resume == "no":
            return 0
        if resume != "newest":
            return resume
        return max(saved_steps(RunDir(self.run.path).checkpoints), default=0)

    def log(self, text: str) -> None:
        """Add a line to the console log of the run."""
        if self.run is None:
            return
        console_log = RunDir(self.run.path).console_log
        with suppress(OSError):
            if console_log.is_file():
                with console_log.open("a", encoding="utf-8") as log:
                    log.write(f"{text}\n")

    def fail(self, reason: str) -> None:
        """Record that the run failed, unless rank 0 has recorded how it ended."""
        if self.run is not None and not self.has_ended:
            self._write(RunDir(self.run.path), "failed", reason)

    def preempt(self, reason: str) -> bool:
        """Record that the run was stopped between two starts; returns whether it can resume."""
        if self.run is None or self.has_ended or not self.has_begun:
            return False
        run_dir = RunDir(self.run.path)
        self._write(run_dir, "preempted" if run_dir.has_checkpoint else "failed", reason)
        return run_dir.has_checkpoint

    def _status(self) -> dict[str, Any]:
        return {} if self.run is None else RunDir(self.run.path).status() or {}

    def _write(self, run_dir: RunDir, state: State, reason: str) -> None:
        status = run_dir.status() or {}
        with suppress(OSError):
            run_dir.write_status(
                state,
                status.get("step", 0),
                resumable=run_dir.has_checkpoint,
                reason=reason,
                num_steps=status.get("num_steps"),
            )
