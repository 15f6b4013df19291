"""The run directory: one holder at a time, files that scripts can rely on."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from rlcli.errors import RunDirError

State = Literal["running", "finished", "preempted", "paused", "failed"]


def write_json(path: Path, value: Any) -> None:
    """The file holds `value` or what it held before, never half of either."""
    scratch = path.with_name(f".{path.name}.part")
    scratch.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(scratch, path)


class RunDir:
    """`outputs/<run>/`, locked while it is held."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.console_log = path / "console.log"
        self._lock: Any = None

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is something to resume from."""
        return any(self.checkpoints.glob("step_*"))

    def probe(self, *, resumes: bool) -> None:
        """Say early what `hold` would refuse, writing nothing.

        Raises: RunDirError.
        """
        if (self.path / "run.lock").is_file():
            self.hold(resumes=resumes)
            self.release()

    def hold(self, *, resumes: bool) -> None:
        """Create and lock the directory.

        Raises: RunDirError when it cannot be written, is in use, or holds a run that was not
        asked to be resumed.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / "run.lock").open("a+", encoding="utf-8")
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "another process"
            self.release()
            raise RunDirError(
                f"{self.path} is in use by {holder}. Wait for it, or choose another --output_dir."
            ) from error
        status = self.status()
        never_began = status and status["step"] == 0 and not self.has_checkpoint
        if status and not resumes and not (never_began and status["state"] == "failed"):
            self.release()
            raise RunDirError(
                f"{self.path} holds a run already ({status['state']} at step {status['step']}).\n"
                "Add --resume auto to go on with it, or choose another --output_dir."
            )
        try:
            self._lock.truncate(0)
            self._lock.write(f"process {os.getpid()}")
            self._lock.flush()
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> RunDirError:
        return RunDirError(
            f"cannot write to {self.path}: {error.strerror}. Choose another --output_dir."
        )

    def release(self) -> None:
        """Let others have the directory."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def status(self) -> dict[str, Any] | None:
        """status.json, or None before the first run. A file that cannot be read is a run too."""
        file = self.path / "status.json"
        if not file.is_file():
            return None
        try:
            status = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            status = None
        if not isinstance(status, dict) or not {"state", "step"} <= status.keys():
            return {"state": "of unknown state", "step": 0}
        return status

    def write_status(self, state: State, step: int, *, resumable: bool, reason: str) -> None:
        """Say how the run stands."""
        status = {"state": state, "step": step, "resumable": resumable, "reason": reason}
        write_json(self.path / "status.json", status)

    def write_config(self, config: Mapping[str, Any], sources: Mapping[str, str]) -> None:
        """The resolved settings and where each came from."""
        try:
            write_json(self.path / "config.json", config)
            write_json(self.path / "sources.json", sources)
        except OSError as error:
            raise self._unwritable(error) from error

    def link_latest(self) -> None:
        """Point `checkpoints` beside the run at this run's; a real folder is left alone."""
        link = self.path.parent / "checkpoints"
        if link.exists() and not link.is_symlink():
            return
        scratch = link.with_name(f".checkpoints.{os.getpid()}")
        scratch.symlink_to(Path(self.path.name) / "checkpoints")
        os.replace(scratch, link)
