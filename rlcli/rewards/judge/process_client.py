"""The parent's end of one judge's process: calls out, answers in, by a thread each."""

from __future__ import annotations

import pickle
import subprocess
import threading
import time
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, get_args

from rlcli.rewards.judge.messages import Answer, Asking, Call, Opening, Scoring
from rlcli.rewards.judge.scorer import CLOSE_S
from rlcli.rewards.process import exit_reason, start_worker
from rlcli.types import Reward

PATIENCE_S = 8 * CLOSE_S
"""Seconds to end in, which the scorer's own closing does not need."""


class ProcessExited(Exception):
    """The process ended before it answered."""


class ProcessClient:
    """One process, and what it has not answered yet. Neither a call nor its end waits for it.

    answered_at: time.monotonic() of its last answer, 0 before the first. end: why there are no
    more answers.
    """

    def __init__(self, opening: Opening, log: Path | None) -> None:
        self.answered_at = 0.0
        self.end: BaseException | None = None
        self._log = log
        self._pending: dict[int, tuple[Scoring | Asking | None, Future[Any]]] = {}
        self._number = 0
        self._lock = threading.Lock()
        self._is_closing = False
        self._process, self._connection = start_worker(
            "rlcli.rewards.judge.process_worker", log=log
        )
        self._calls: SimpleQueue[bytes | None] = SimpleQueue()
        self._calls.put(pickle.dumps(opening))
        self._threads = [
            threading.Thread(target=work, name="judge", daemon=True)
            for work in (self._write, self._read)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether it may still answer."""
        return self.end is None

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def call(self, method: Scoring | Asking, *arguments: Any) -> Future[Any]:
        """The answer to come. A rollout that gets none is unscored; all else raises Gone."""
        future: Future[Any] = Future()
        with self._lock:
            self._number += 1
            message = pickle.dumps(Call(number=self._number, method=method, arguments=arguments))
            self._pending[self._number] = (method, future)
        self._calls.put(message)
        if self.end is not None:  # it ended meanwhile, and nobody else looks at this call
            self._give_up(self.end)
        return future

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def close(self) -> None:
        """End it, at once where it does not end by itself; what is being scored is given up."""
        self._is_closing = True
        self._calls.put(pickle.dumps(Call(number=0, method=None)))
        self._calls.put(None)
        patience_s = PATIENCE_S if time.monotonic() - self.answered_at < PATIENCE_S else CLOSE_S
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=patience_s)
        self._process.kill()
        self._process.wait()
        for thread in self._threads:
            thread.join()
        self._connection.close()

    def _write(self) -> None:
        """Send calls; a pipe that is full keeps nobody else."""
        while (message := self._calls.get()) is not None:
            with suppress(OSError):  # the reader sees the end of a dead process, and how it died
                self._connection.send_bytes(message)

    def _read(self) -> None:
        """Hand out answers until the process ends."""
        while True:
            try:
                answer = self._connection.recv()
            except (EOFError, OSError):
                return self._give_up(ProcessExited(self._obituary()))
            except Exception as error:  # of another version of the code, for instance
                self.kill()
                return self._give_up(
                    ProcessExited(f"the judge's process said what nobody knows: {error}")
                )
            if isinstance(answer, BaseException):
                return self._give_up(answer)
            self.answered_at = time.monotonic()
            with self._lock:
                _, future = self._pending.pop(answer.number)
            _resolve(future, answer)

    def _obituary(self) -> str:
        where = f" (see {self._log})" if self._log else ""
        return exit_reason(self._process, "the judge's process") + where

    def _give_up(self, end: BaseException) -> None:
        """What has no answer gets none."""
        with self._lock:
            self.end = end
            pending, self._pending = self._pending, {}
        for method, future in pending.values():
            if self._is_closing:
                future.cancel()
            elif isinstance(end, ProcessExited) and method in get_args(Scoring):
                unscored = Reward(value=None, error=f"judge: {end}")
                _resolve(future, Answer(number=0, value=unscored))
            else:
                _resolve(future, Answer(number=0, error=end))


def _resolve(future: Future[Any], answer: Answer) -> None:
    if isinstance(answer.error, CancelledError):
        future.cancel()
        return
    if not future.set_running_or_notify_cancel():
        return
    if answer.error is None:
        future.set_result(answer.value)
    else:
        future.set_exception(answer.error)
