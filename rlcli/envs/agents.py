"""The parent's end of the process that starts agents."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rlcli.envs.chat import MODEL
from rlcli.envs.endpoint import HOST
from rlcli.errors import ConfigError
from rlcli.rewards.process import is_secret, start_worker

AGENT = "agent:"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentEnd:
    """An agent that has ended. status: its exit status, negative for a signal; None: it was never
    started, or its host is gone. line, error: the last lines of its stdout and stderr."""

    number: int
    status: int | None
    line: str = ""
    error: str = ""

    @property
    def failure(self) -> str | None:
        """Why it did not end by itself with success; None: it did."""
        if self.status == 0:
            return None
        if self.status is None:
            return f"the agent {self.error or 'is gone'}"
        if self.status < 0:
            how = f"was killed by {_signal_name(-self.status)}"
        else:
            how = f"exited with status {self.status}"
        return f"the agent {how}" + (f": {self.error[:300]}" if self.error else "")


def _signal_name(number: int) -> str:
    with suppress(ValueError):  # real-time signals have no names
        return signal.Signals(number).name
    return f"signal {number}"


class Agents:
    """Agents of one command. on_end: called from another thread for each that ends.

    keep_env: environment variables with keys that agents may read. variables: more of them. log:
    file for what they print.
    """

    def __init__(
        self,
        argv: Sequence[str],
        on_end: Callable[[AgentEnd], None],
        *,
        keep_env: Sequence[str],
        variables: Mapping[str, str],
        log: Path | None,
    ) -> None:
        self._argv, self._on_end = list(argv), on_end
        self._environment = {**agent_environment(os.environ, keep=keep_env), **variables}
        self._running: set[int] = set()
        self._lock = threading.Lock()
        self._log = log
        self._is_closed = False
        self._start_host()

    def start(self, number: int, task: str, *, url: str, key: str) -> None:
        """Start an agent. task: its stdin. url, key: of the endpoint."""
        own = {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": key, "OPENAI_MODEL": MODEL}
        with self._lock:
            self._running.add(number)
        self._send(
            op="start",
            id=number,
            argv=self._argv,
            env={**self._environment, **own},
            input=task,
            mark=f"OPENAI_API_KEY={key}",
        )

    def kill(self, number: int) -> None:
        """Kill an agent; its end is reported."""
        self._send(op="kill", id=number)

    def close(self) -> None:
        """Kill all agents and wait for their host to end."""
        self._is_closed = True
        self._send(op="end")
        self._process.wait()

    def _start_host(self) -> None:
        words = (str(os.getpid()),)
        self._process, self._connection = start_worker(
            "rlcli.envs.agent_host", *words, log=self._log
        )
        threading.Thread(target=self._read, daemon=True, name="agents").start()

    def _send(self, **message: object) -> None:
        data = json.dumps(message).encode()
        with suppress(OSError):  # the reader notices
            self._connection.send_bytes(data)

    def _read(self) -> None:
        """Report the ends of agents; if the host ends, of all, and start another one."""
        with suppress(EOFError, OSError):
            while True:
                given = json.loads(self._connection.recv_bytes())
                with self._lock:
                    self._running.discard(given["id"])
                self._on_end(
                    AgentEnd(
                        number=given["id"],
                        status=given["status"],
                        line=given["line"],
                        error=given["error"],
                    )
                )
        if self._is_closed:
            return
        self._process.wait()
        self._start_host()
        with self._lock:
            left, self._running = self._running, set()
        for number in sorted(left):
            self._on_end(AgentEnd(number=number, status=None, error="lost its host process"))


def agent_environment(
    environment: Mapping[str, str], *, keep: Sequence[str] = ()
) -> dict[str, str]:
    """What agents see of this process's variables: no keys but those named; loopback is direct."""
    kept = {key: value for key, value in environment.items() if key in keep or not is_secret(key)}
    direct = ",".join(filter(None, [kept.get("NO_PROXY") or kept.get("no_proxy"), HOST]))
    threads = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    return {**threads, **kept, "NO_PROXY": direct, "no_proxy": direct}


def command_of(target: str) -> list[str]:
    """The words of `agent:COMMAND`. Raises: ConfigError if there is no such program."""
    try:
        words = shlex.split(target.removeprefix(AGENT))
    except ValueError as error:
        raise ConfigError(f"{target}: {error}.") from error
    if not words:
        raise ConfigError(f"{target} names no command. Write agent:'python my_agent.py'.")
    program = os.path.expanduser(words[0])
    if shutil.which(program) is None:
        raise ConfigError(
            f"{target}: there is no program {words[0]}. Give its path, such as "
            "agent:'venv/bin/python my_agent.py'."
        )
    return [program, *words[1:]]


def absolute_command(target: str) -> str:
    """`agent:COMMAND` whose words that name existing files are absolute, as a run needs that is
    resumed in another folder."""
    try:
        words = shlex.split(target.removeprefix(AGENT))
    except ValueError:
        return target  # `command_of` refuses it
    absolute = [_absolute_file(word, is_program=i == 0) for i, word in enumerate(words)]
    return target if absolute == words else AGENT + shlex.join(absolute)


def _absolute_file(word: str, *, is_program: bool) -> str:
    path = os.path.expanduser(word) if is_program else word
    if is_program and os.sep not in path:
        return word  # found in PATH
    return os.path.abspath(path) if os.path.isfile(path) else word
