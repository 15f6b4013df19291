"""The parent's end of one scoring process: start it, call it against a clock, kill it."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rlcli.errors import RewardError
from rlcli.rewards.protocol import READY, STARTED, UNSAFE

LOG = logging.getLogger(__name__)


START_LIMIT_S = 120.0
"""Seconds to import a reward: its clock has not started yet, but it may hang here as well."""

SHORTEST_S = 0.05
"""Smallest extension of a call's time."""
_SECRET = re.compile(
    r"API_?KEY|SECRET|PASSWORD|PASSWD|DATABASE_URL|WEBHOOK"
    r"|(?:^|_)(?:TOKEN|CREDENTIALS?|KEY|PAT|PWD|AUTH)$"
)


class CallFailed(Exception):
    """One call has no score, and the process is of no more use."""


class NotStarted(CallFailed):
    """The process was gone before the call reached it: the call is not to blame."""


class ScoringProcess:
    """A child that runs one reward. Methods are called from the thread that made it.

    The child dies with that thread. timeout_s: of one call; the child gets it too, to stop the
    model's code earlier. allows_unsafe: such code may run without a sandbox. form: "lists" and
    "columns" of the loaded `UserFunction`.
    """

    def __init__(
        self,
        fn: str,
        *,
        timeout_s: float,
        log: Path | None = None,
        allows_unsafe: bool = False,
    ) -> None:
        self._timeout_s = timeout_s
        self._is_ready = False
        self.form: dict[str, Any] = {}
        given = [str(os.getpid()), fn, str(timeout_s), *[UNSAFE] * allows_unsafe]
        self._process, self._connection = start_worker("rlcli.rewards.worker", *given, log=log)

    def wait_until_ready(self) -> None:
        """Return when the reward is loaded.

        Raises:
            RewardError: it cannot be loaded.
            NotStarted: the process ended.
        """
        if self._is_ready:
            return
        try:
            message = self._receive(time.monotonic() + START_LIMIT_S)
        except TimeoutError as error:
            raise RewardError(
                f"the reward was not loaded within {START_LIMIT_S:g} s: does its file start work "
                "when it is imported?"
            ) from error
        except EOFError as error:
            raise NotStarted(self._obituary()) from error
        if not message.startswith(READY):
            raise RewardError(message.decode())
        self.form = json.loads(message.removeprefix(READY))
        self._is_ready = True

    def call(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The reply of one call: {"score", "parts"} or {"error"}.

        Raises:
            CallFailed: the process died or took too long: it has to be killed.
        """
        try:
            self._connection.send_bytes(pickle.dumps(arguments))
        except OSError as error:
            raise NotStarted(self._obituary()) from error
        try:
            message = self._receive(time.monotonic() + START_LIMIT_S)
            if message == STARTED:
                message = self._receive_in_time()
        except TimeoutError as error:
            late = f"took longer than {self._timeout_s:g} s (reward.timeout_s)"
            raise CallFailed(late) from error
        except EOFError as error:
            raise CallFailed(self._obituary()) from error
        reply: dict[str, Any] = json.loads(message)
        return reply

    def stop(self) -> None:
        """End the process and everything it started. May be called from any thread."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Stop, and give back what the process held here."""
        self.stop()
        self._process.wait()
        self._connection.close()

    def _obituary(self) -> str:
        return exit_reason(self._process, "the scoring process")

    def _receive_in_time(self) -> bytes:
        """The next message within the timeout, not counting the child's waits for a CPU.

        Otherwise a loaded machine turns right answers into timeouts, and three timeouts end a run.
        """
        begun, waited_s = time.monotonic(), self._waited_s()
        allowed_s = self._timeout_s
        while True:
            try:
                return self._receive(begun + allowed_s)
            except TimeoutError:
                longer_s = self._timeout_s + self._waited_s() - waited_s
                if longer_s - allowed_s < SHORTEST_S:
                    raise
                allowed_s = longer_s

    def _waited_s(self) -> float:
        """Seconds that the child's main thread has waited for a CPU; 0 if unknown."""
        try:
            fields = Path(f"/proc/{self._process.pid}/schedstat").read_text().split()
            return int(fields[1]) / 1e9
        except (OSError, IndexError, ValueError):
            return 0.0

    def _receive(self, deadline: float) -> bytes:
        try:
            if self._connection.poll(max(0.0, deadline - time.monotonic())):
                return self._connection.recv_bytes()
        except OSError as error:
            raise EOFError from error
        raise TimeoutError


def start_worker(
    module: str, *words: str, log: Path | None, keep: Sequence[str] = ()
) -> tuple[subprocess.Popen[bytes], Connection]:
    """(a process that runs `python -m module CONNECTION_FD words`, the connection to it).

    It has no keys but those that `keep` names, and is in a session of its own, where Ctrl-C does
    not reach it. log: file for what it prints; none: nowhere.
    """
    connection, theirs = Pipe()
    fd = theirs.fileno()
    with open(log or os.devnull, "ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, str(fd), *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(fd,),
            env=child_environment(os.environ, keep=keep),
            start_new_session=True,
        )
    theirs.close()
    LOG.debug("process %d started: %s", process.pid, " ".join((module, *words)))
    return process, connection


def exit_reason(process: subprocess.Popen[Any], who: str) -> str:
    """How a process ended, in words; its exit status comes shortly after its last byte."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5)
    status = process.returncode
    if status is None:
        return f"{who} closed its connection"
    if status < 0:
        return f"{who} was killed by {signal.Signals(-status).name}"
    return f"{who} exited with status {status}"


def child_environment(
    environment: Mapping[str, str], *, keep: Sequence[str] = ()
) -> dict[str, str]:
    """The environment of a scoring process: no keys, one thread, modules found as here.

    keep: variables that stay although they may hold a key.
    """
    kept = {key: value for key, value in environment.items() if key in keep or not is_secret(key)}
    search = os.pathsep.join(path for path in sys.path if path)
    # Without a fixed hash seed, sympy's order of terms, and with it a verdict, may change.
    return {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"} | kept | {"PYTHONPATH": search}


def is_secret(name: str) -> bool:
    """Whether an environment variable of this name holds a key."""
    return bool(_SECRET.search(name.upper()))
