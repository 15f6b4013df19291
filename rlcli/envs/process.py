"""The parent's end of environment processes: requests against a clock, kills, replacements."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from rlcli.errors import ConfigError
from rlcli.rewards.process import exit_reason, start_worker

START_LIMIT_S = 120.0
"""Seconds to import an environment."""
MAX_RESETS = 8
"""Episodes that a process resets side by side."""
OLDEST_PYTHON = (3, 11)


class EnvError(Exception):
    """The environment raised an exception of its own."""


class EnvTimeoutError(Exception):
    """A request took too long; its process is killed."""


class EnvLostError(Exception):
    """The process ended during a request.

    is_collateral: it was killed because of another one. is_alone: no other request was under way.
    """

    def __init__(self, text: str, *, is_collateral: bool, is_alone: bool = True) -> None:
        super().__init__(text)
        self.is_collateral, self.is_alone = is_collateral, is_alone


class EnvClosedError(Exception):
    """The pool is closed: nothing more is asked of its environment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvSpec:
    """An environment, and how to run it. keep_env: environment variables it may see.

    args: keywords of the class. is_tools: the target is a file of functions. python: the Python
    that runs it; None: this one.
    """

    target: str
    args: Mapping[str, Any] = field(default_factory=dict[str, Any])
    is_tools: bool = False
    python: str | None = None
    workers: int = 1
    concurrency: int = 64
    timeout_s: float = 30.0
    episode_timeout_s: float = 600.0
    keep_env: Sequence[str] = ()


class EnvProcess:
    """One environment process. Requests may come from any thread; it dies with the first one.

    Raises: ConfigError if the environment cannot be loaded or its process not started.
    """

    def __init__(self, spec: EnvSpec, *, log: Path | None = None) -> None:
        given = {
            "target": spec.target,
            "args": dict(spec.args),
            "is_tools": spec.is_tools,
            "threads": spec.concurrency,
            "timeout_s": spec.timeout_s,
        }
        words = (str(os.getpid()), json.dumps(given))
        if spec.python is not None:
            check_python(spec.python)
        try:
            self._process, self._connection = start_worker(
                "rlcli.envs.worker", *words, log=log, keep=spec.keep_env, python=spec.python
            )
        except OSError as error:  # out of memory, processes or files
            raise ConfigError(f"{spec.target}: no process can be started: {error}.") from error
        self._numbers = count(1)
        self._lock = threading.Lock()
        # a reset may take all of a core: its limit must not pay for those of many others
        self._resets = threading.Semaphore(MAX_RESETS)
        started: Future[Any] = Future()
        self._pending: dict[int, Future[Any]] = {0: started}
        self._is_dead = False
        self._was_killed = self._is_reaped = False
        self._kill_lock = threading.Lock()
        threading.Thread(target=self._read, daemon=True, name="environment").start()
        try:
            started.result(START_LIMIT_S)
        except FutureTimeout as error:
            self.close()
            raise ConfigError(
                f"{spec.target} was not loaded within {START_LIMIT_S:g} s: does its file start "
                "work when it is imported?"
            ) from error
        except EnvError as error:
            self.close()
            raise ConfigError(str(error)) from error
        except EnvLostError as error:
            self.close()
            raise ConfigError(f"{spec.target} cannot be loaded: {error}.") from error

    @property
    def is_down(self) -> bool:
        """Whether it takes no more requests."""
        return self._is_dead

    def room(self, op: str) -> AbstractContextManager[Any]:
        """Waits until few enough others reset; hold it during a request that begins an episode."""
        return self._resets if op in ("reset", "opening", "answers") else nullcontext()

    def request(self, op: str, timeout_s: float, **given: Any) -> Any:
        """The result of one operation. Raises: EnvError, EnvTimeoutError, EnvLostError."""
        future: Future[Any] = Future()
        with self._lock:
            if self._is_dead:
                raise EnvLostError("the environment process is gone", is_collateral=True)
            number = next(self._numbers)
            self._pending[number] = future
            message = json.dumps({"id": number, "op": op, **given}, default=str)
            with suppress(OSError):  # the reader notices
                self._connection.send_bytes(message.encode())
        try:
            return future.result(timeout_s)
        except FutureTimeout as error:
            if future.done():  # it came a moment too late
                return future.result()
            self.kill()
            raise EnvTimeoutError(f"no answer within {timeout_s:.3g} s") from error

    def kill(self) -> None:
        """End the process; every request under way fails with is_collateral=True."""
        self._was_killed = self._is_dead = True
        with self._kill_lock, suppress(ProcessLookupError):
            if not self._is_reaped:  # its number may be another process's by now
                os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End the process and wait for it."""
        self.kill()
        self._process.wait()
        with self._kill_lock:
            self._is_reaped = True

    def _read(self) -> None:
        """Hand each reply to its request, until the process is gone."""
        with suppress(EOFError, OSError):
            while True:
                reply = json.loads(self._connection.recv_bytes())
                with self._lock:
                    future = self._pending.pop(reply["id"], None)
                if future is None:
                    continue
                if "error" in reply:
                    future.set_exception(EnvError(reply["error"]))
                else:
                    future.set_result(reply["result"])
        with self._lock:
            self._is_dead = True
            left = list(self._pending.values())
            self._pending.clear()
            self._connection.close()
        is_collateral, is_alone = self._was_killed, len(left) == 1
        text = exit_reason(self._process, "the environment process") if left else ""
        self.close()
        for future in left:
            lost = EnvLostError(text, is_collateral=is_collateral, is_alone=is_alone)
            future.set_exception(lost)


@cache
def check_python(python: str) -> None:
    """Raises: ConfigError unless this is a Python that can run an environment."""
    try:
        answer = subprocess.run([python, "--version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"env.python={python} cannot be run: {error}.") from error
    version = re.search(r"(\d+)\.(\d+)", answer.stdout)
    if version is None or (int(version[1]), int(version[2])) < OLDEST_PYTHON:
        found = answer.stdout.strip() or answer.returncode
        raise ConfigError(
            f"env.python={python} is {found}; environments need Python 3.11 or newer."
        )


def find_python(name: str) -> str:
    """The path of a Python: of a program on PATH, a file, or the folder of an environment.

    Raises: ConfigError.
    """
    path = Path(os.path.expanduser(name)).absolute()  # a link of an environment must stay one
    if path.is_dir():
        path = path / "bin" / "python"
    found = str(path) if path.is_file() else shutil.which(name)
    if found is None:
        raise ConfigError(
            f"env.python={name}: there is no such Python. Make one: python3 -m venv FOLDER, and "
            "FOLDER/bin/pip install what the environment imports."
        )
    return found


class EnvPool:
    """The environment processes of this rank: `workers` shared ones, replaced when they die.

    Once it is closed, shared() and private() raise EnvClosedError.
    """

    def __init__(self, spec: EnvSpec, *, log: Path | None = None) -> None:
        self.spec, self._log = spec, log
        self._slots: list[EnvProcess | None] = [None] * spec.workers
        self._locks = [threading.Lock() for _ in range(spec.workers)]
        self._private: set[EnvProcess] = set()
        self.num_deaths = 0
        self.is_closed = False

    def shared(self, number: int) -> EnvProcess:
        """The process that serves episode `number`; a new one if it is dead."""
        slot = number % self.spec.workers
        with self._locks[slot]:
            process = self._slots[slot]
            if process is None or process.is_down:
                self._check_open()
                self.num_deaths += process is not None
                process = self._slots[slot] = EnvProcess(self.spec, log=self._log)
                if self.is_closed:  # meanwhile
                    process.close()
                self._check_open()
            return process

    def private(self) -> EnvProcess:
        """A process for one episode alone, whose failure takes no other episode down."""
        self._check_open()
        process = EnvProcess(self.spec, log=self._log)
        self._private.add(process)
        if self.is_closed:  # meanwhile
            self.release(process)
        self._check_open()
        return process

    def release(self, process: EnvProcess) -> None:
        """End a process that `private` gave."""
        if process in self._private:
            self._private.discard(process)
            process.close()

    def close(self) -> None:
        """End all processes; one that is being started ends as soon as it runs."""
        self.is_closed = True
        for process in [*self._slots, *self._private]:
            if process is not None:
                process.close()

    def _check_open(self) -> None:
        if self.is_closed:
            raise EnvClosedError("the environments are closed")
