"""A program of the model, run for what it prints."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from contextlib import suppress
from typing import Any

from rlcli.rewards.sandbox.inside.calls import refuse_calls
from rlcli.rewards.sandbox.inside.solution import execute, limit

KEPT = 16 << 10
"""Bytes of output that are returned: this many from its start and from its end."""
OPEN_FILES = 256
ANSWER = "<answer>"
"""File name of the program's frames."""


def main() -> None:
    """Read {"code", "limits", "limit_s"}, write {"ready"} and {"output"}."""
    with open(0, "rb", closefd=False) as file:
        job = json.load(file)
    _write({"ready": True})
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _be_program(job, writer)
    os.close(writer)
    _write({"output": _read(reader, pid, job["limit_s"])})
    os._exit(0)


def _be_program(job: dict[str, Any], output: int) -> None:
    """Become the program."""
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.closerange(3, OPEN_FILES)
    sys.argv = ["program.py"]
    refuse_calls()
    limit(job["limits"])
    try:
        execute([job["code"]], "__main__")
    except SystemExit:
        raise
    except BaseException as error:
        sys.stdout.flush()
        frames = error.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename != ANSWER:
            frames = frames.tb_next
        traceback.print_exception(error.with_traceback(frames), limit=-5, chain=False)
        sys.exit(1)
    sys.exit(0)


def _read(reader: int, pid: int, limit_s: float) -> str:
    """What the program prints, its middle left out where it is long, and how it was ended."""
    output = _Output()
    signal.signal(signal.SIGALRM, _stop)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        while more := os.read(reader, 1 << 16):
            output.add(more)
        _, status = os.waitpid(pid, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except _Late:
        return output.text(f"The program was stopped after {limit_s:g} s.")
    finally:
        with suppress(ProcessLookupError):  # what it left running ends with this process
            os.killpg(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(status)
    return output.text(f"The program was ended by signal {-code}." if code < 0 else "")


class _Late(BaseException):
    """The time is up."""


def _stop(*_: Any) -> None:
    raise _Late


class _Output:
    """The start and the end of an output."""

    def __init__(self) -> None:
        self._head, self._tail, self._dropped = bytearray(), bytearray(), 0

    def add(self, more: bytes) -> None:
        room = KEPT - len(self._head)
        self._head += more[:room]
        self._tail += more[room:]
        self._dropped += max(0, len(self._tail) - KEPT)
        del self._tail[:-KEPT]

    def text(self, end: str) -> str:
        """The output and how it ended."""
        middle = f"\n[{self._dropped} bytes]\n".encode() if self._dropped else b""
        whole = (bytes(self._head) + middle + bytes(self._tail)).decode("utf-8", "replace")
        return f"{whole.strip()}\n{end}".strip()


def _write(message: dict[str, Any]) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")
