"""The run directory: locked by one process at a time, with files that scripts can rely on."""

from __future__ import annotations

import difflib
import errno
import fcntl
import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from rlcli.config.changes import by_key
from rlcli.config.schema import Config
from rlcli.errors import RunDirError
from rlcli.run_dir.metrics_file import newest_metrics
from rlcli.terminal.text import short_path

State = Literal["running", "finished", "preempted", "paused", "failed"]
"""The states in status.json, on which scripts rely; users see the result of `in_words`."""


def in_words(state: str) -> str:
    """`state` as shown to users: a preempted run is shown as stopped."""
    return "stopped" if state == "preempted" else state


LOCK_TRIES = 5
TAIL_BYTES = 2**18
ELSEWHERE = "choose another --output_dir"
LOGS = (".log", ".out", ".err")
"""Files that a shell or scheduler may write into the directory before the run starts."""


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically: the file holds the old or the new value, never a part."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


class RunDir:
    """`outputs/<run>/`, locked while in use. elsewhere: advice for messages if it is taken."""

    def __init__(self, path: Path, *, elsewhere: str = ELSEWHERE) -> None:
        self.path = path
        self.elsewhere = elsewhere
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.console_log = path / "console.log"
        self._lock: Any = None

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return any(self.checkpoints.glob("step_*"))

    def probe(self, *, resumes: bool) -> None:
        """Raise the errors of `hold` early, without leaving files behind.

        Raises: RunDirError.
        """
        try:
            if (self.path / "run.lock").is_file():
                self.hold(resumes=resumes)
                self.release()
                return
            self._refuse_foreign(resumes=resumes)
            # permission bits show no read-only disk, and root bypasses them
            existing = self.path.absolute()
            while not existing.exists():
                existing = existing.parent
            tempfile.TemporaryDirectory(prefix=".rlcli-", dir=existing).cleanup()
        except OSError as error:
            raise self._unwritable(error) from error

    def _refuse_foreign(self, *, resumes: bool) -> None:
        """Raises: RunDirError if the directory holds files that do not belong to a run."""
        if not self.path.is_dir() or is_run(self.path) or (resumes and self.has_checkpoint):
            return
        names = (path.name for path in self.path.iterdir() if path.suffix not in LOGS)
        foreign = sorted(name for name in names if not name.startswith("."))
        if foreign:
            shown = ", ".join(foreign[:3]) + (", ..." if foreign[3:] else "")
            raise RunDirError(
                f"{self.path} holds files that are of no run: {shown}.\n"
                f"A run would write over them: {self.elsewhere}, or an empty directory."
            )

    def hold(self, *, resumes: bool) -> None:
        """Create and lock the directory.

        Raises: RunDirError if it cannot be written, is in use, holds files that do not belong to a
        run, or holds a run that is not to be resumed.
        """
        try:
            self._refuse_foreign(resumes=resumes)
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / "run.lock").open("a+", encoding="utf-8")
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            self._take_lock()
        except OSError as error:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "another process"
            self.release()
            raise RunDirError(
                f"{self.path} is in use by {holder}. Wait for it, or {self.elsewhere}."
            ) from error
        status = self.status()
        never_started = status and status["step"] == 0 and not self.has_checkpoint
        if status and not resumes and not (never_started and status["state"] == "failed"):
            self.release()
            raise RunDirError(
                f"{self.path} holds a run already ({status['state']} at step {status['step']}).\n"
                f"Add --resume auto to go on with it, or {self.elsewhere}."
            )
        try:
            self._lock.truncate(0)
            self._lock.write(f"process {os.getpid()}")
            self._lock.flush()
        except OSError as error:
            raise self._unwritable(error) from error

    def _take_lock(self) -> None:
        """Take the lock, waiting for short reads by others. Raises: OSError if a run holds it."""
        for left in reversed(range(LOCK_TRIES)):
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not os.fstat(self._lock.fileno()).st_nlink:
                    raise FileNotFoundError(errno.ENOENT, "its holder took it away")
                return
            except OSError:
                if not left:
                    raise
                time.sleep(0.02)

    def holder(self) -> str | None:
        """The process that holds the directory, as `process 4711`; None if none does."""
        try:
            with (self.path / "run.lock").open(encoding="utf-8") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except OSError:
                    return lock.read().strip() or "another process"
        except OSError:
            pass
        return None

    def _unwritable(self, error: OSError) -> RunDirError:
        return RunDirError(
            f"cannot write to {self.path}: {error.strerror}. Choose another --output_dir."
        )

    def release(self) -> None:
        """Unlock the directory."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def status(self) -> dict[str, Any] | None:
        """status.json, or None before the first run. An unreadable file counts as a run."""
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

    def write_status(
        self,
        state: State,
        step: int,
        *,
        resumable: bool,
        reason: str,
        num_steps: int | None = None,
    ) -> None:
        """Write status.json; `num_steps` is the total number of steps."""
        status = {
            "state": state,
            "step": step,
            "num_steps": num_steps,
            "resumable": resumable,
            "reason": reason,
        }
        write_json(self.path / "status.json", status)

    def state(self) -> str:
        """The state in status.json; `killed` if it died while running, `starting` before it."""
        status = self.status()
        if status is None or status["state"] == "running":
            held = self.holder() is not None
            return ("running" if held else "killed") if status else "starting" if held else "empty"
        return str(status["state"])

    def last_metrics(self) -> dict[str, float]:
        """Newest value of every metric in the last part of metrics.jsonl."""
        return newest_metrics(self.metrics, last_bytes=TAIL_BYTES)

    def config(self) -> Config:
        """The settings of the run's last start.

        Raises: RunDirError if config.json is missing or does not fit this version.
        """
        written = self.written_config()
        try:
            return Config.model_validate(written)
        except ValueError as error:
            raise self._unreadable(error) from None

    def settings(self) -> dict[str, Any]:
        """The same by dotted key; only settings that are in the file and known to this version.

        Raises: RunDirError if config.json is missing or broken.
        """
        return by_key(self.written_config())

    def written_config(self) -> dict[str, Any]:
        """config.json, unchanged. Raises: RunDirError."""
        file = self.path / "config.json"
        try:
            written = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunDirError(
                f"{self.path} has no config.json: no run was started in it."
            ) from None
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from None
        if not isinstance(written, dict):
            raise self._unreadable(ValueError("it holds no settings"))
        return written

    def _unreadable(self, error: Exception) -> RunDirError:
        first = str(error).splitlines()[0]
        return RunDirError(
            f"{self.path / 'config.json'} cannot be read: {first}\n"
            "It was changed, or written by another version."
        )

    def write_config(self, config: Mapping[str, Any], sources: Mapping[str, str]) -> None:
        """Write the resolved settings and the source of each."""
        try:
            write_json(self.path / "config.json", config)
            write_json(self.path / "sources.json", sources)
        except OSError as error:
            raise self._unwritable(error) from error

    def link_latest(self) -> None:
        """Link `checkpoints` beside the run to this run's checkpoints; never replace a folder."""
        link = self.path.parent / "checkpoints"
        if link.exists() and not link.is_symlink():
            return
        temporary = link.with_name(f".checkpoints.{os.getpid()}")
        temporary.symlink_to(Path(self.path.name) / "checkpoints")
        os.replace(temporary, link)


def is_run(folder: Path) -> bool:
    """Whether a run was started in `folder`."""
    return any((folder / name).is_file() for name in ("run.lock", "status.json", "sources.json"))


def list_runs(folder: Path) -> list[Path]:
    """Run directories in `folder`, or `folder` itself; most recently written first."""
    if is_run(folder):
        return [folder]
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if p.is_dir() and not p.is_symlink() and is_run(p)]
    return sorted(found, key=last_written, reverse=True)


def last_written(run: Path) -> float:
    """Unix time of the run's last write."""
    names = ("metrics.jsonl", "status.json", "config.json", "run.lock")
    return max((p.stat().st_mtime for name in names if (p := run / name).is_file()), default=0.0)


def find_run(text: str, cwd: Path) -> Path:
    """The run that `text` names: a path, a name in outputs/, or `latest`.

    Raises: RunDirError with the closest name.
    """
    outputs = cwd / "outputs"
    if text == "latest":
        link = outputs / "checkpoints"
        if link.is_symlink() and is_run(link.resolve().parent):
            return short_path(link.resolve().parent, cwd)
        if runs := list_runs(outputs):
            return short_path(runs[0], cwd)
        raise RunDirError(f"there is no run in {outputs} yet. Start one, or give a run's path.")
    for path in (Path(os.path.expanduser(text)), outputs / text):
        if text.strip() and is_run(cwd / path):
            return short_path(path, cwd)
    names = [run.name for run in list_runs(outputs)]
    close = difflib.get_close_matches(text.rstrip("/").rsplit("/", 1)[-1], names, n=1, cutoff=0.4)
    hint = f"Nearest: {close[0]}." if close else "rlcli runs list shows what there is."
    raise RunDirError(f"{text!r} is neither a run directory nor a name in {outputs}. {hint}")
