"""Train the runs to compare, each in its own process, and measure their resource use."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

from rlcli.config.base import leaves
from rlcli.config.changes import HOUSEKEEPING, changes
from rlcli.config.resolved import SHRUNK
from rlcli.config.schema import Config
from rlcli.errors import ConfigError, Paused, RunDirError
from rlcli.run_dir.folder import RunDir, write_json
from rlcli.tools.compare.table import USAGE, Usage, read_usage

POLL_S = 0.05
END_S = 60.0
"""Seconds for an abandoned run to save its state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run to train. wanted: its settings, before they are clamped to the data."""

    algorithm: str
    seed: int
    folder: Path
    words: tuple[str, ...]
    wanted: Config

    @property
    def label(self) -> str:
        """Name in progress lines."""
        return f"{self.algorithm} seed {self.seed}"

    @property
    def log(self) -> Path:
        """File with the output of its process."""
        return self.folder.with_name(f"{self.folder.name}.log")

    def is_finished(self) -> bool:
        """Whether it has already finished.

        Raises: RunDirError if it is running now, ConfigError if its settings differ.
        """
        run_dir = RunDir(self.folder)
        if not (self.folder / "config.json").is_file():
            return False
        if changed := _unlike(run_dir, self.wanted):
            key, old, new = changed[0]
            more = f" ({len(changed) - 1} more settings differ)" if changed[1:] else ""
            raise ConfigError(
                f"{self.folder} was run with {key}={old}, and is now to have {key}={new}{more}.\n"
                "Choose another --out, or give the settings it had."
            )
        if holder := run_dir.holder():
            raise RunDirError(f"{self.folder} is in use by {holder}. Wait for it.")
        return run_dir.state() == "finished"

    def command(self) -> list[str]:
        """Command of the child process, which resumes from a checkpoint if there is one."""
        command = [sys.executable, "-m", "rlcli.cli.main", "train", *self.words]
        command += ["--algo", self.algorithm, "--seed", str(self.seed)]
        command += ["--output_dir", str(self.folder)]
        began = RunDir(self.folder).status() is not None
        return [*command, "--resume", "auto"] if began else command


def _unlike(run_dir: RunDir, wanted: Config) -> list[tuple[str, Any, Any]]:
    """(key, what the run had, what is wanted). Raises: RunDirError where config.json is unfit.

    A number that had to be made smaller then is made smaller now.
    """
    try:
        sources = json.loads((run_dir.path / "sources.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        sources = {}
    return [
        (key, old, new)
        for key, old, new in changes(leaves(run_dir.config()), leaves(wanted), free=HOUSEKEEPING)
        if not (SHRUNK in str(sources.get(key)) and new is not None and new > old)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A failed run and its last error."""

    run: str
    exit_code: int
    reason: str

    @property
    def is_paused(self) -> bool:
        """Whether it paused for a reason that would also pause the following runs."""
        return self.exit_code == Paused.exit_code


@dataclass(slots=True)
class Stop:
    """The signal that asked the comparison to stop; it is passed on to the run."""

    signal: int | None = None
    child: int | None = field(default=None, repr=False)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        # not print: a handler may run inside another write to the same stream
        os.write(2, b"\nthe run saves after this step, then stops. Again: at once.\n")
        if self.child is not None:
            os.kill(self.child, number)

    @contextmanager
    def listening(self) -> Iterator[Stop]:
        """Handle Ctrl-C and SIGTERM inside this context."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self._on_signal) for number in numbers]
        try:
            yield self
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)


def run_job(job: Job, stop: Stop, *, watch: Callable[[], None] = lambda: None) -> Failure | None:
    """Train it in its own process and record resource use; None if it finished."""
    part_before = read_usage(job.folder)
    had_begun = RunDir(job.folder).status() is not None
    code, usage = _run_child(job, stop, watch)
    if part_before is not None:
        usage = part_before.then(usage)
    elif had_begun:
        usage = replace(usage, is_whole=False)
    if job.folder.is_dir():
        write_json(job.folder / USAGE, asdict(usage))
    if code == 0 and RunDir(job.folder).state() == "finished":
        return None
    return Failure(run=str(job.folder), exit_code=code, reason=_last_words(job.log))


def _run_child(job: Job, stop: Stop, watch: Callable[[], None]) -> tuple[int, Usage]:
    """(exit code, resource use). In its own session: Ctrl-C reaches it once, through `stop`."""
    command, begun = job.command(), time.monotonic()
    with job.log.open("ab") as log:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    ended = 0
    stop.child = child.pid
    try:
        if stop.signal is not None:
            os.kill(child.pid, stop.signal)
        while True:
            ended, status, spent = os.wait4(child.pid, os.WNOHANG)
            if ended:
                break
            watch()
            time.sleep(POLL_S)
    finally:
        stop.child = None
        if not ended:
            _end(child)
    child.returncode = os.waitstatus_to_exitcode(status)
    bytes_per_unit = 1 if sys.platform == "darwin" else 1024
    usage = Usage(
        wall_s=time.monotonic() - begun,
        cpu_s=spent.ru_utime + spent.ru_stime,
        peak_mib=spent.ru_maxrss * bytes_per_unit / 2**20,
    )
    return child.returncode, usage


def _end(child: subprocess.Popen[bytes]) -> None:
    """Stop an abandoned run by SIGTERM, so that it saves first, and wait for it."""
    child.terminate()
    try:
        child.wait(END_S)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _last_words(log: Path) -> str:
    """The error that ended a run, in one line."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    said = lines[errors[-1] :] if errors else lines[-1:]
    return " ".join(line.strip() for line in said).removeprefix("error: ")
