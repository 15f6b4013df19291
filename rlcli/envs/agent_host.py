"""The process that starts agents, collects what they print, and leaves none of them behind.

Runs as `python -m rlcli.envs.agent_host CONNECTION_FD PARENT_PID`. Messages are JSON. From the
parent: {"op": "start", "id", "argv", "env", "input", "mark"}, {"op": "kill", "id"}, {"op": "end"}.
To it: {"id", "status", "line", "error"} when an agent has ended. Once the parent is gone, however
it ended, all agents are killed with everything that they started.
"""

from __future__ import annotations

import ctypes
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rlcli.system.hardware import be_killed_first, die_with_parent

PR_SET_CHILD_SUBREAPER = 36
PARENT_CHECK_S = 1.0
KEPT_BYTES = 65_536
"""Of the end of what an agent prints; its reward is the last line."""
LOGGED_BYTES = 2**20
"""Of what one agent prints, into the log."""
KILL_PASSES = 20
LAST_READS = 4
"""Of what is left in a pipe, which usually has room for KEPT_BYTES, once an agent has ended."""


def main() -> None:
    """Serve until the parent is gone."""
    fd, parent_pid = map(int, sys.argv[1:])
    if sys.platform == "linux":  # orphans of agents become children of this process
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    host = AgentHost(Connection(fd), parent_pid)
    try:
        host.serve()
    finally:
        host.kill_all()


@dataclass(slots=True, kw_only=True)
class _Agent:
    """A running agent. mark: a text that only its processes have in their environment."""

    number: int
    process: subprocess.Popen[bytes]
    mark: bytes
    tails: dict[str, bytes] = field(default_factory=lambda: {"stdout": b"", "stderr": b""})
    num_logged: int = 0


class AgentHost:
    """Agents by their process id."""

    def __init__(self, connection: Connection, parent_pid: int) -> None:
        self._connection, self._parent_pid = connection, parent_pid
        self._agents: dict[int, _Agent] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(connection, selectors.EVENT_READ)
        self._wake, wake_up = os.pipe()
        for each in (self._wake, wake_up):
            os.set_blocking(each, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_up, warn_on_full_buffer=False)
        self._selector.register(self._wake, selectors.EVENT_READ)

    def serve(self) -> None:
        """Start and kill agents as told, and report each that ends; returns without a parent."""
        with suppress(EOFError, OSError):
            while os.getppid() == self._parent_pid:
                for key, _ in self._selector.select(PARENT_CHECK_S):
                    if key.fileobj is self._connection:
                        message = json.loads(self._connection.recv_bytes())
                        if message["op"] == "end":
                            return
                        self._obey(message)
                    elif key.fileobj == self._wake:
                        os.read(self._wake, 4096)
                        self._reap()
                    else:
                        agent, name = key.data
                        self._read(agent, name)

    def kill_all(self) -> None:
        """Kill every process below this one."""
        for _ in range(KILL_PASSES):
            left = list(_descendants(os.getpid()))
            for pid in [*left, *self._agents]:
                _kill(pid)
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            if not left:
                return

    def _obey(self, message: Mapping[str, Any]) -> None:
        if message["op"] == "start":
            self._start(message)
            return
        for agent in self._agents.values():
            if agent.number == message["id"]:
                _kill(agent.process.pid)

    def _start(self, message: Mapping[str, Any]) -> None:
        number = message["id"]
        try:
            with tempfile.TemporaryFile() as task:
                task.write(message["input"].encode())
                task.seek(0)
                process = subprocess.Popen(
                    message["argv"],
                    stdin=task,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env=message["env"],
                    start_new_session=True,
                    preexec_fn=_be_an_agent,
                )
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            self._report(number, error=f"cannot be started: {error}")
            return
        agent = _Agent(number=number, process=process, mark=message["mark"].encode())
        self._agents[process.pid] = agent
        for name in ("stdout", "stderr"):
            stream = getattr(process, name)
            os.set_blocking(stream.fileno(), False)
            self._selector.register(stream, selectors.EVENT_READ, (agent, name))

    def _read(self, agent: _Agent, name: str) -> bool:
        """Take some of what an agent has printed; whether there was any.

        One read per call: an agent that prints without end must not keep the others waiting.
        """
        stream = getattr(agent.process, name)
        if stream.closed:  # its end was found in the same round
            return False
        try:
            data = os.read(stream.fileno(), KEPT_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._selector.unregister(stream)
            stream.close()
            return False
        agent.tails[name] = (agent.tails[name] + data)[-KEPT_BYTES:]
        logged = data[: max(0, LOGGED_BYTES - agent.num_logged)]
        agent.num_logged += len(logged)
        with suppress(OSError):  # a full disk must not end the agents
            os.write(sys.stdout.fileno(), logged)
        return True

    def _reap(self) -> None:
        """Report the agents that have ended; other children are orphans."""
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                if (agent := self._agents.pop(pid, None)) is not None:
                    agent.process.returncode = os.waitstatus_to_exitcode(status)
                    self._finish(agent)

    def _finish(self, agent: _Agent) -> None:
        for _ in range(KILL_PASSES):
            left = [pid for pid in _descendants(os.getpid()) if self._is_of(pid, agent)]
            if not left:
                break
            for pid in left:
                _kill(pid)
        for name in ("stdout", "stderr"):
            for _ in range(LAST_READS):
                if not self._read(agent, name):
                    break
            stream = getattr(agent.process, name)
            if not stream.closed:  # a process that it has left behind holds it
                self._selector.unregister(stream)
                stream.close()
        error = _last_line(agent.tails["stderr"])
        line = _last_line(agent.tails["stdout"])
        self._report(agent.number, status=agent.process.returncode, line=line, error=error)

    def _is_of(self, pid: int, agent: _Agent) -> bool:
        """Whether a live process was started by this agent."""
        if pid in self._agents:
            return False
        with suppress(OSError):
            if os.getsid(pid) == agent.process.pid:
                return True
            return agent.mark in Path(f"/proc/{pid}/environ").read_bytes()
        return False

    def _report(self, number: int, **found: Any) -> None:
        message = {"id": number, "status": None, "line": "", "error": "", **found}
        self._connection.send_bytes(json.dumps(message).encode())


def _be_an_agent() -> None:
    die_with_parent()
    be_killed_first()


def _last_line(data: bytes) -> str:
    lines = data.decode("utf-8", "replace").strip().splitlines()
    return lines[-1].strip() if lines else ""


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _descendants(root: int) -> Iterator[int]:
    """Live processes below `root`, where the system lists them in /proc."""
    parents: dict[int, int] = {}
    with suppress(OSError):
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with suppress(OSError, ValueError, IndexError):
                    # the name in parentheses may have spaces
                    state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                    if state != "Z":
                        parents[int(entry.name)] = int(parent)
    for pid in parents:
        above = parents.get(pid)
        while above and above != root:
            above = parents.get(above)
        if above == root:
            yield pid


if __name__ == "__main__":
    main()
