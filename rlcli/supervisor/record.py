"""The run directory in a supervisor's hands: held, read for how the run stands, and written to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rlcli.checkpoint import Resume, saved_steps
from rlcli.errors import Paused
from rlcli.monitor.run_dir import RunDir, State
from rlcli.monitor.signals import BY_CTRL_C, INTERRUPTED
from rlcli.supervisor.logs import missing_folders

LOCK = "run.lock"


@contextmanager
def held(run_dir: RunDir, *, resumes: bool) -> Iterator[None]:
    """Nobody else has the directory meanwhile. A run that never began in a new one leaves nothing.

    Raises: RunDirError.
    """
    path = run_dir.path
    made, had_lock = missing_folders(path), (path / LOCK).exists()
    run_dir.hold(resumes=resumes)
    try:
        yield
    finally:
        with suppress(OSError):
            if not had_lock and [file.name for file in path.iterdir()] == [LOCK]:
                (path / LOCK).unlink()
                for folder in made:
                    folder.rmdir()
        run_dir.release()


class Record:
    """How the run stands. resume: what this session was to go on from."""

    def __init__(self, path: Path, resume: Resume) -> None:
        self.run_dir = RunDir(path)
        self._resume: Resume = resume
        self._before = self._at_start = self.stamp()

    def stamp(self) -> tuple[int, int] | None:
        """Another one whenever status.json was written anew; None without it."""
        try:
            found = (self.run_dir.path / "status.json").stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    @property
    def has_begun(self) -> bool:
        """Whether rank 0 has written in this session how the run stands.

        By then it has gone on from its checkpoint, and set later ones aside.
        """
        return self.stamp() != self._before

    def start(self) -> None:
        """All ranks are started, for the first time or again."""
        self._at_start = self.stamp()

    @property
    def has_started(self) -> bool:
        """Whether rank 0 of this start has anything to save: it has written so too."""
        return self.stamp() != self._at_start

    @property
    def has_ended(self) -> bool:
        """Whether rank 0 has written down how the run ended."""
        status = self.run_dir.status() or {}
        return self.has_begun and status.get("state") not in (None, "running")

    def exit_code(self, preempt_exit_code: int) -> int | None:
        """What rank 0 is to end with by what it has written down; None before it has ended."""
        if not self.has_ended:
            return None
        status = self.run_dir.status() or {}
        if status["state"] == "preempted":
            return INTERRUPTED if status.get("reason") == BY_CTRL_C else preempt_exit_code
        return {"finished": 0, "paused": Paused.exit_code}.get(status["state"], 1)

    @property
    def resume(self) -> Resume:
        """What the next start goes on from: once the run has begun, the newest checkpoint is its
        own."""
        return "newest" if self.has_begun else self._resume

    @property
    def step(self) -> int:
        """Steps that are done where the next start begins."""
        if self.resume == "no":
            return 0
        if self.resume != "newest":
            return self.resume
        return max(saved_steps(self.run_dir.checkpoints), default=0)

    def tell(self, text: str) -> None:
        """Have the run's log say it too."""
        with suppress(OSError):
            if self.run_dir.console_log.is_file():
                with self.run_dir.console_log.open("a", encoding="utf-8") as log:
                    log.write(f"{text}\n")

    def fail(self, reason: str) -> None:
        """A run that nobody goes on with is not left `running`; what rank 0 has said stays."""
        if not self.has_ended:
            self._write("failed", reason)

    def preempt(self, reason: str) -> bool:
        """Whether a run that was stopped between two starts can be gone on with, and say so."""
        if self.has_ended or not self.has_begun:
            return False
        is_saved = self.run_dir.has_checkpoint
        self._write("preempted" if is_saved else "failed", reason)
        return is_saved

    def clean(self) -> None:
        """Take away what ranks that were killed have met by."""
        for file in self.run_dir.path.glob(".group-*"):
            file.unlink(missing_ok=True)

    def _write(self, state: State, reason: str) -> None:
        status = self.run_dir.status() or {}
        with suppress(OSError):
            self.run_dir.write_status(
                state,
                status.get("step", 0),
                resumable=self.run_dir.has_checkpoint,
                reason=reason,
                num_steps=status.get("num_steps"),
            )
