"""The rank processes of this machine: started on a leash, watched, killed with all of theirs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

from rlcli.data.files import printable
from rlcli.place import RELAUNCHED, RUN_DIR, log_path
from rlcli.supervisor.job import Death, Job, Start

LEASH = Path(__file__).with_name("leash.py")
LAST_BYTES, LAST_LINES, LINE_LIMIT = 8192, 3, 200
"""Of a log that is quoted."""
TORCH_PREFIX = re.compile(r"^\[rank\d+\]:")
"""Of a traceback's lines once torch.distributed runs."""
REAP_LIMIT_S = 10.0


class Ranks:
    """The ranks of one start. Each leads a process group of its own.

    Raises: OSError where they cannot be started, or their logs not be written.
    """

    def __init__(self, job: Job, start: Start) -> None:
        self.start = start
        self._node = job.launch.node_rank
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._logs: dict[int, tuple[Path, int]] = {}
        first = self._node * job.num_local
        try:
            for local_rank in range(job.num_local):
                rank = first + local_rank
                self._start(job, rank, rank_env(job, start, local_rank, os.environ))
        except BaseException:
            self.kill()
            raise

    def deaths(self) -> list[Death]:
        """Those since the last call."""
        found: list[Death] = []
        for rank, process in list(self._processes.items()):
            ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                continue
            code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
            if code:
                # not reaped yet, so the group's number is still its own
                _kill_group(process.pid)
            del self._processes[rank]
            process.wait()
            found.append(Death(rank=rank, code=code, words=self._words(rank), node=self._node))
        return found

    def ask_rank_0(self, number: int) -> None:
        """Send it a signal, if it is here."""
        process = self._processes.get(0)
        if process is not None:
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)  # not send_signal: that would reap it unseen

    def wait(self, limit_s: float) -> list[Death]:
        """Those that end within limit_s, without being asked to."""
        deadline_s = time.monotonic() + limit_s
        found = self.deaths()
        while self._processes and time.monotonic() < deadline_s:
            time.sleep(0.05)
            found += self.deaths()
        return found

    def kill(self) -> None:
        """End all that are left, and what they started."""
        for process in self._processes.values():
            _kill_group(process.pid)
        for process in self._processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(REAP_LIMIT_S)
        self._processes.clear()

    def _start(self, job: Job, rank: int, env: Mapping[str, str]) -> None:
        command = [sys.executable, "-ESs", str(LEASH), str(os.getpid()), *job.command]
        log: IO[bytes] | None = None
        if rank > 0:
            path = log_path(self.start.run_dir, rank)
            path.parent.mkdir(parents=True, exist_ok=True)
            log = path.open("ab")
            self._logs[rank] = (path, log.tell())
        try:
            self._processes[rank] = subprocess.Popen(
                command,
                env=env,
                stdin=None if log is None else subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        finally:
            if log is not None:
                log.close()

    def _words(self, rank: int) -> str:
        """The last lines of this start's part of the log; rank 0 has spoken to the user."""
        if rank not in self._logs:
            return ""
        path, begin = self._logs[rank]
        try:
            with path.open("rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(begin, end - LAST_BYTES))
                text = log.read().decode("utf-8", errors="replace")
        except OSError:
            return ""
        lines = [TORCH_PREFIX.sub("", line).strip() for line in text.splitlines()]
        lines = [line for line in lines if line.strip("^~ ")]
        return " / ".join(printable(line, LINE_LIMIT) for line in lines[-LAST_LINES:])


def rank_env(job: Job, start: Start, local_rank: int, env: Mapping[str, str]) -> dict[str, str]:
    """The environment of a rank: its place, and what `job` adds where it is not set."""
    found = {"TORCH_CPP_LOG_LEVEL": "ERROR", **job.env, **env}
    if start.interface:
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            found.setdefault(name, start.interface)
    found |= job.launch.passed_on()
    found |= {
        "RANK": str(job.launch.node_rank * job.num_local + local_rank),
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(job.num_ranks),
        "LOCAL_WORLD_SIZE": str(job.num_local),
        "MASTER_ADDR": start.address,
        "MASTER_PORT": str(start.port),
        RUN_DIR: str(start.run_dir),
    }
    found.pop(RELAUNCHED, None)
    if start.relaunches:
        found[RELAUNCHED] = str(start.relaunches)
    return found


def _kill_group(leader: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
