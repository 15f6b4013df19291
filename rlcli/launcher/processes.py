"""The rank processes of this machine: how they ended, their last log lines, and killing them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from rlcli.data.files import printable
from rlcli.distributed.agree import log_mark, log_path
from rlcli.launcher.job import Death
from rlcli.launcher.signals import Signals

REAP_LIMIT_S = 10.0
LAST_LINES, LINE_LIMIT = 3, 200
"""Lines that are quoted of a log, and characters of each."""
TORCH_PREFIX = re.compile(r"^\[rank\d+\]:")
"""torch.distributed puts it before every line of a traceback."""


class Processes:
    """The ranks of one start on this machine. Each leads its own process group."""

    def __init__(self, processes: Mapping[int, subprocess.Popen[bytes]], *, node: int) -> None:
        self._processes = dict(processes)
        self._node = node

    def deaths(self, run_dir: Path | None) -> list[Death]:
        """Ranks that ended since the last call. run_dir: has their logs; None if not known."""
        found: list[Death] = []
        for rank, process in list(self._processes.items()):
            ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                continue
            code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
            if code:
                # not reaped yet, so no other process group can have its number
                _kill_group(process.pid)
            del self._processes[rank]
            process.wait()
            words = last_words(run_dir, rank, process.pid) if rank and run_dir and code else ""
            found.append(Death(rank=rank, code=code, words=words, node=self._node))
        return found

    def signal_rank_0(self, number: int) -> None:
        """Send rank 0 a signal, if it is on this machine."""
        process = self._processes.get(0)
        if process is not None:
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)  # Popen.send_signal might reap it unnoticed

    def wait(self, limit_s: float, signals: Signals) -> None:
        """Wait until all have exited, limit_s has passed, or another signal arrives."""
        deadline_s = time.monotonic() + limit_s
        self.deaths(None)
        while self._processes and time.monotonic() < deadline_s and not signals.take():
            time.sleep(0.05)
            self.deaths(None)

    def kill(self) -> None:
        """Kill the remaining ranks and the processes they started."""
        for process in self._processes.values():
            _kill_group(process.pid)
        for process in self._processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(REAP_LIMIT_S)
        self._processes.clear()


def last_words(run_dir: Path, rank: int, pid: int) -> str:
    """The last lines that this process wrote to its log; rank 0 writes to the terminal."""
    try:
        text = log_path(run_dir, rank).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    _, mark, written = text.rpartition(log_mark(pid))
    if not mark:
        return ""
    lines = [TORCH_PREFIX.sub("", line).strip() for line in written.splitlines()]
    lines = [line for line in lines if line.strip("^~ ")]
    return " / ".join(printable(line, LINE_LIMIT) for line in lines[-LAST_LINES:])


def _kill_group(leader: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
