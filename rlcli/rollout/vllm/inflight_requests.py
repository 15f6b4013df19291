"""Requests in flight to servers: balanced, limited in number, and retried after failures."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from rlcli.errors import SamplerError
from rlcli.rollout.vllm.client import Call, ServerFailedError, ServerRefusedError
from rlcli.rollout.vllm.open_rows import OpenRows
from rlcli.rollout.vllm.replica import HEALTH_PROBE, Replica
from rlcli.rollout.vllm.requests import SampleRequest

PULSE_S = 10.0
SILENT_S = 60.0
"""An engine that says nothing for so long is dead. It is heard between two of its steps: this
leaves room for one that reads long prompts on a CPU."""
MAX_TRIES = 2


@dataclass(frozen=True, slots=True)
class Answer:
    """Result of one request; asked is None for a health probe of the server's engine.

    start: the replica's start count when the request was sent.
    """

    asked: SampleRequest | None
    replica: Replica
    start: int
    content: Any = None
    error: Exception | None = None


class Flight:
    """The requests of one call of `generate`.

    body: a request's. group: requests of one prompt, which one server answers where it can: it
    remembers the prompt. The server of a turn answers the later ones, too. on_death: told of a
    server that is dead; afterwards one at least lives.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        body: Callable[[SampleRequest, Replica], dict[str, Any]],
        *,
        group: int,
        max_num_seqs: int,
        on_death: Callable[[Replica, Exception], None],
    ) -> None:
        self.replicas, self.body, self.on_death = replicas, body, on_death
        self.group, self.max_num_seqs = group, max_num_seqs
        self._answers: SimpleQueue[Answer | None] = SimpleQueue()  # None: an environment's reply
        self._waiting: deque[SampleRequest] = deque()
        self._busy: Counter[Replica] = Counter()
        self._homes: dict[int, Replica] = {}
        self._row_homes: dict[int, Replica] = {}
        self._shunned: dict[int, Replica] = {}
        self._tries: Counter[int] = Counter()

    def run(self, rows: OpenRows) -> Iterator[tuple[SampleRequest, Any]]:
        """Yield each request of the rows with its response, which is put into the rows before the
        next one. Raises: SamplerError."""
        rows.on_reply = lambda: self._answers.put(None)
        self._waiting.extend(rows.asked.values())
        looked_s = time.monotonic()
        while True:
            # first, while the server has their rows' keys and values
            self._waiting.extendleft(reversed(rows.next_requests()))
            if rows.are_over:
                return
            self._send_out()
            if time.monotonic() - looked_s > PULSE_S:
                looked_s = time.monotonic()
                self._feel_pulses()
            try:
                answer = self._answers.get(timeout=PULSE_S)
            except Empty:
                continue
            if answer is None:
                continue
            if answer.asked is not None:
                self._busy[answer.replica] -= 1
            if answer.error is not None:
                self._deal_with(answer, answer.error)
            elif answer.asked is not None:
                index = answer.asked.index
                self._row_homes[index] = answer.replica
                self._shunned.pop(index, None)
                self._tries.pop(index, None)
                yield answer.asked, answer.content

    def abort(self) -> None:
        """Cancel all requests."""
        self._waiting.clear()
        for replica in self.replicas:
            replica.abort()

    def _send_out(self) -> None:
        while self._waiting and (replica := self._place_for(self._waiting[0])):
            one = self._waiting.popleft()
            self._homes[one.index // self.group] = replica
            self._busy[replica] += 1
            self._ask(replica, one)

    def _place_for(self, one: SampleRequest) -> Replica | None:
        """The replica with the same prompt, else the least busy, but not one that failed before.

        A later turn goes to its row's replica even if that is busy: anywhere else all of it would
        be read again.
        """
        row_home = self._row_homes.get(one.index)
        if row_home is not None and not row_home.is_down:
            return row_home
        free = [
            replica
            for replica in self.replicas
            if not replica.is_down and self._busy[replica] < self.max_num_seqs
        ]
        shunned = self._shunned.get(one.index)
        free = [replica for replica in free if replica is not shunned] or free
        home = self._homes.get(one.index // self.group)
        if home in free:
            return home
        return min(free, key=lambda replica: self._busy[replica], default=None)

    def _ask(self, replica: Replica, one: SampleRequest | None) -> None:
        """Send the request in a thread, which always puts an answer in the queue."""
        start = replica.starts
        call = Call(replica.address, timeout_s=None if one else SILENT_S)
        path, body = HEALTH_PROBE
        if one is not None:
            path, body = "/v1/completions", self.body(one, replica)
        replica.calls.add(call)

        def run() -> None:
            try:
                content = call.ask("POST", path, body)
                answer = Answer(one, replica, start, content)
            except Exception as error:
                answer = Answer(one, replica, start, error=error)
            replica.calls.discard(call)
            self._answers.put(answer)

        Thread(target=run, daemon=True, name="rlcli-vllm").start()

    def _feel_pulses(self) -> None:
        for replica in self.replicas:
            if not replica.is_down:
                self._ask(replica, None)

    def _deal_with(self, answer: Answer, error: Exception) -> None:
        one, replica = answer.asked, answer.replica
        if one is not None:
            self._waiting.append(one)
            self._homes.pop(one.index // self.group, None)
            self._row_homes.pop(one.index, None)
        if replica.is_down or answer.start != replica.starts:
            return
        if isinstance(error, ServerRefusedError):
            raise SamplerError(
                f"the vLLM server at {replica.address.url} refuses a request: {error}"
            ) from error
        if not isinstance(error, ServerFailedError):
            raise error
        is_silent = one is None and isinstance(error.__cause__, TimeoutError)
        if is_silent or not replica.is_alive():
            self.on_death(replica, error)
        elif one is not None:
            self._shunned[one.index] = replica
            self._tries[one.index] += 1
            if self._tries[one.index] >= MAX_TRIES:
                raise SamplerError(
                    f"the vLLM server at {replica.address.url} failed twice on a request: {error}"
                ) from error
