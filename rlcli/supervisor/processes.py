"""The rank processes of this machine: started on a leash, watched, killed with all of theirs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path

from rlcli.place import RELAUNCHED, RESUME, RUN_DIR
from rlcli.supervisor.job import Death, Job, Start
from rlcli.supervisor.logs import Logs
from rlcli.supervisor.signals import Signals

LEASH = Path(__file__).with_name("leash.py")
REAP_LIMIT_S = 10.0


class Ranks:
    """The ranks of one start. Each leads a process group of its own.

    Raises: OSError where they cannot be started, or their logs not be written.
    """

    def __init__(self, job: Job, start: Start) -> None:
        self.logs = Logs(start.run_dir)
        self._node = job.launch.node_rank
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
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
            found.append(
                Death(rank=rank, code=code, words=self.logs.last_words(rank), node=self._node)
            )
        return found

    def ask_rank_0(self, number: int) -> None:
        """Send it a signal, if it is here."""
        process = self._processes.get(0)
        if process is not None:
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)  # not send_signal: that would reap it unseen

    def wait(self, limit_s: float, signals: Signals) -> None:
        """Until all have ended by themselves, limit_s are over, or a signal says to hurry."""
        deadline_s = time.monotonic() + limit_s
        self.deaths()
        while self._processes and time.monotonic() < deadline_s and not signals.take():
            time.sleep(0.05)
            self.deaths()

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
        with self.logs.open(rank) if rank else nullcontext() as log:
            self._processes[rank] = subprocess.Popen(
                command,
                env=env,
                stdin=None if log is None else subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


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
        RESUME: str(start.resume),
    }
    found.pop(RELAUNCHED, None)
    if start.relaunches:
        found[RELAUNCHED] = str(start.relaunches)
    return found


def _kill_group(leader: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
