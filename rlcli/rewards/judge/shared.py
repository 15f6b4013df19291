"""One judge for all ranks: rank 0 runs it, and the other ranks send it their responses.

This gives one rate limiter, one cache and one budget. Each response is sent as soon as it is
sampled.
"""

from __future__ import annotations

import pickle
import secrets
import socket
import threading
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from queue import Empty, SimpleQueue
from typing import Any

from rlcli.errors import RankLostError
from rlcli.rewards.base import Scorer, StatelessScorer, text_rollout
from rlcli.rewards.judge.process import JudgeProcess, slim
from rlcli.rewards.judge.scorer import can_come_back
from rlcli.types import Prompt, Reward, Rollout

KEY_BYTES = 32
NOT_OURS = (AuthenticationError, EOFError, OSError)
Outcome = Reward | BaseException


@dataclass(frozen=True, slots=True)
class JudgeAddress:
    """Address of rank 0's judge, and the key that authenticates the ranks."""

    host: str
    port: int
    key: bytes


@dataclass(frozen=True, slots=True)
class _Question:
    """A response to judge. prompt: its id if both sides have it."""

    number: int
    prompt: str | Prompt
    text: str


class _Line:
    """Sends and receives objects, with one thread per direction. Objects that queue up are batched.

    on_end: called once, when the peer is gone or `close` is called.
    """

    def __init__(
        self,
        line: socket.socket,
        on_object: Callable[[_Line, Any], None],
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self._socket, self._on_object, self._on_end = line, on_object, on_end
        self._connection = Connection(line.dup().detach())
        self._waiting: SimpleQueue[Any] = SimpleQueue()
        self._threads = [
            threading.Thread(target=work, name="judge line", daemon=True)
            for work in (self._write, self._read)
        ]
        for thread in self._threads:
            thread.start()

    def put(self, value: Any) -> None:
        """Queue an object for sending."""
        self._waiting.put(value)

    def close(self) -> None:
        """Stop sending and receiving."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._waiting.put(None)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        self._connection.close()
        self._socket.close()

    def _write(self) -> None:
        while (value := self._waiting.get()) is not None:
            batch = [value]
            with suppress(Empty):
                while (value := self._waiting.get_nowait()) is not None:
                    batch.append(value)
            try:
                self._connection.send_bytes(zlib.compress(pickle.dumps(batch), 1))
            except OSError:
                return  # the reading thread sees the error too
            if value is None:
                return

    def _read(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                for each in pickle.loads(zlib.decompress(self._connection.recv_bytes())):
                    self._on_object(self, each)
        self._on_end()


class JudgeServer:
    """Serves rank 0's judge to the other ranks. prompts: those that both sides have."""

    def __init__(self, judge: Scorer, host: str, key: bytes, prompts: Iterable[Prompt]) -> None:
        self._judge, self._key = judge, key
        self._prompts = {prompt.id: prompt for prompt in prompts}
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._door = socket.create_server((host, 0), family=family)
        self._lines: list[_Line] = []
        self._thread = threading.Thread(target=self._accept, name="judge door", daemon=True)
        self._thread.start()

    @property
    def address(self) -> JudgeAddress:
        """Address for the other ranks."""
        host, port = self._door.getsockname()[:2]
        return JudgeAddress(host, port, self._key)

    def close(self) -> None:
        """Stop serving."""
        with suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()
        self._thread.join()
        for line in self._lines:
            line.close()

    def _accept(self) -> None:
        while True:
            try:
                guest, _ = self._door.accept()
            except OSError:
                return
            # In a thread of its own: a client that does not authenticate must not block the rest.
            threading.Thread(target=self._greet, args=(guest,), daemon=True).start()

    def _greet(self, guest: socket.socket) -> None:
        try:
            with Connection(guest.dup().detach()) as connection:
                deliver_challenge(connection, self._key)
                answer_challenge(connection, self._key)
        except NOT_OURS:
            guest.close()
            return
        self._lines.append(_Line(guest, self._submit))

    def _submit(self, line: _Line, question: _Question) -> None:
        known = question.prompt
        prompt = self._prompts[known] if isinstance(known, str) else known
        number = question.number
        try:
            future = self._judge.submit(text_rollout(prompt, question.text))
        except Exception as error:  # closed, or failed to start: the calling rank must see it
            line.put((number, error))
            return
        future.add_done_callback(lambda done: line.put((number, _outcome(done))))


def _outcome(done: Future[Reward]) -> Outcome:
    if done.cancelled():
        return Reward(value=None, error="the scorer was closed")
    return done.exception() or done.result()


class SharedJudge(JudgeProcess):
    """A judge's process that the other ranks can use too, once it is served."""

    _server: JudgeServer | None = None

    def serve(self, host: str, prompts: Iterable[Prompt]) -> JudgeAddress:
        """Start serving the other ranks. host: an address of this machine."""
        self._server = JudgeServer(self, host, secrets.token_bytes(KEY_BYTES), prompts)
        return self._server.address

    def close(self) -> None:
        """Stop serving and end the process."""
        if self._server is not None:
            self._server.close()
        super().close()


class RemoteJudge(StatelessScorer):
    """The judge of rank 0 as a `Scorer` on another rank. prompts: those that both sides have.

    Only rank 0 has metrics, canaries and spending.

    Raises:
        RankLostError: rank 0 does not answer.
    """

    def __init__(self, address: JudgeAddress, prompts: Iterable[Prompt]) -> None:
        self._prompts = {prompt.id: prompt for prompt in prompts}
        self._lock = threading.Lock()
        self._pending: dict[int, Future[Reward]] = {}
        self._number = 0
        self._is_closed = self._is_gone = False
        try:
            line = socket.create_connection((address.host, address.port))
            with Connection(line.dup().detach()) as connection:
                answer_challenge(connection, address.key)
                deliver_challenge(connection, address.key)
        except NOT_OURS as error:
            where = f"{address.host}:{address.port}"
            raise RankLostError(f"rank 0 does not answer at {where}: {error}") from error
        self._line = _Line(line, self._take, self._give_up)

    def submit(self, rollout: Rollout, *, before: Reward | None = None) -> Future[Reward]:
        """Begin to score one rollout; returns at once."""
        future: Future[Reward] = Future()
        with self._lock:
            if self._is_closed:
                raise RuntimeError("the scorer is closed")
            if self._is_gone:
                future.set_exception(RankLostError("rank 0 is gone"))
                return future
            self._number += 1
            number = self._number
            self._pending[number] = future
        prompt = rollout.prompt
        is_known = self._prompts.get(prompt.id) is prompt
        known = prompt.id if is_known else slim(rollout).prompt
        self._line.put(_Question(number, known, rollout.text))
        return future

    def can_recover(self, unscored: Reward) -> bool:
        """A judge comes back; a content filter says the same every time."""
        return can_come_back(unscored)

    def close(self) -> None:
        """Disconnect; responses being scored are given up."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        self._line.close()

    def _take(self, line: _Line, answer: tuple[int, Outcome]) -> None:
        number, outcome = answer
        with self._lock:
            future = self._pending.pop(number)
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    def _give_up(self) -> None:
        """Fail all pending responses: rank 0 is gone, or this scorer was closed."""
        with self._lock:
            self._is_gone = True
            pending, self._pending = self._pending, {}
        for future in pending.values():
            if self._is_closed:
                future.cancel()
            else:
                future.set_exception(RankLostError("rank 0 is gone"))
