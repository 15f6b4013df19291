"""Runs `rlcli train` in a process of its own, for a Python program or a notebook."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Thread
from typing import IO

from rlcli.errors import (
    ConfigError,
    Paused,
    RankLostError,
    RlcliError,
    TrainingError,
    UsageError,
)
from rlcli.system.signals import INTERRUPTED

# the run ends with the program that started it; the launcher passes sys.argv on to the ranks
COMMAND = (
    "from rlcli.system.hardware import die_with_parent; die_with_parent(); "
    "from rlcli.cli.main import run_process; run_process()"
)
ERRORS: dict[int, type[RlcliError]] = {
    UsageError.exit_code: ConfigError,
    Paused.exit_code: Paused,
    RankLostError.exit_code: RankLostError,
}
LAST_LINES = 40


def train_in_child(words: Sequence[str]) -> Path:
    """Train with the arguments `words` of `rlcli train`; the run directory.

    The output goes to stdout of this program. Ctrl-C is passed on.

    Raises:
        RlcliError: The run failed.
        KeyboardInterrupt: It was stopped by Ctrl-C, with a checkpoint after the first.
    """
    child = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "train", *words, "--json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    assert child.stdout is not None
    assert child.stderr is not None
    results: list[str] = []
    last: list[str] = []
    readers = [
        _read(child.stdout, results.append),
        _read(child.stderr, lambda line: _relay(line, last)),
    ]
    try:
        _wait(child, readers)
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        for stream in (child.stdout, child.stderr):
            stream.close()
    if child.returncode == INTERRUPTED:
        raise KeyboardInterrupt
    if child.returncode:
        kind = ERRORS.get(child.returncode, TrainingError)
        raise kind(_error_of(last) or f"the run ended with exit code {child.returncode}")
    return Path(json.loads(results[-1])["run_dir"])


def _wait(child: subprocess.Popen[str], readers: Sequence[Thread]) -> None:
    """Until the child has ended and all of its output is read; Ctrl-C goes to the child."""
    while True:
        try:
            child.wait()
            for reader in readers:
                reader.join()
            return
        except KeyboardInterrupt:
            child.send_signal(signal.SIGINT)


def _read(stream: IO[str], take: Callable[[str], object]) -> Thread:
    def read() -> None:
        for line in stream:
            take(line.rstrip("\n"))

    thread = Thread(target=read, daemon=True)
    thread.start()
    return thread


def _relay(line: str, last: list[str]) -> None:
    print(line, flush=True)
    last.append(line)
    del last[:-LAST_LINES]


def _error_of(lines: Sequence[str]) -> str:
    """The error that ended the run, from its last lines."""
    starts = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    said = lines[starts[-1] :] if starts else lines[-1:]
    return "\n".join(said).removeprefix("error: ")
