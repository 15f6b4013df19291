"""How many calls may be under way, and how soon the next may start: one per run."""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from rlcli.rewards.judge.circuit_breaker import Breaker, Patience
from rlcli.rewards.judge.faults import Fault, Outage

START_CONCURRENCY = 8
GROWTH = 3.0
"""Calls more for every answer before the first rate limit: four times as many a round."""
SHRINK = 0.8
COOLDOWN_S = 15.0
"""Seconds after a cut in which the limit moves neither way."""
BACKOFF_S = 0.5
"""First wait after a fault; doubled with every further one."""
MAX_WAIT_S = 120.0
"""Longest wait at a closed gate, whatever the provider asks for."""


class Pace:
    """Evenly spaced starts: at most `per_minute` units a minute, without a burst at first."""

    def __init__(self, per_minute: int | None) -> None:
        self._unit_s = 60.0 / per_minute if per_minute else 0.0
        self._next_at = 0.0

    async def take(self, units: float) -> None:
        """Return when `units` may start."""
        if not self._unit_s:
            return
        now = asyncio.get_running_loop().time()
        start = max(now, self._next_at)
        self._next_at = start + units * self._unit_s
        if start > now:
            await asyncio.sleep(start - now)

    def correct(self, units: float) -> None:
        """Count `units` more (or fewer) than were taken."""
        self._next_at += units * self._unit_s


class RateLimiter:
    """A breaker, slots, a gate and paces for every call. Used within one event loop.

    The number of slots grows by GROWTH per answer until the first rate limit, then by one per round
    of answers; every episode of rate limits takes a fifth of them.
    """

    def __init__(self, *, concurrency: int, rpm: int | None, tpm: int | None) -> None:
        self.answered = 0
        self.throttled = 0
        self.breaker = Breaker()
        self._most = concurrency
        self._limit = float(min(START_CONCURRENCY, concurrency))
        self._running = 0
        self._queue: deque[asyncio.Future[None]] = deque()
        self._calls = Pace(rpm)
        self._tokens = Pace(tpm)
        self._open_at = 0.0
        self._closed_at = float("-inf")
        self._steady_until = 0.0
        self._row = 0
        self._answered_at = float("-inf")
        self._given_up: tuple[float, Fault] | None = None

    @property
    def limit(self) -> int:
        """Calls that may be under way now."""
        return int(self._limit)

    @property
    def open_at(self) -> float:
        """Loop time at which the gate opens."""
        return self._open_at

    @asynccontextmanager
    async def call(
        self, tokens: float, *, first: bool, patience: Patience, deadline: float = math.inf
    ) -> AsyncIterator[float]:
        """Wait until a call of about `tokens` may start; yield its start time (loop clock).

        The call holds a slot inside. first: ahead of the queue, for a call that is repeated, such
        as one that was refused with status 429.

        Raises:
            Outage: `patience` or `deadline` (loop clock) ran out while the judge did not answer,
                or `give_up` was called meanwhile.
        """
        if self._given_up and patience.since <= self._given_up[0]:
            raise _outage(self._given_up[1])
        is_paced = False
        while True:
            is_probe = await self.breaker.wait(patience, deadline=deadline)
            try:
                async with self._slot(first=first or is_probe):
                    # What waited for a slot or at the gate meanwhile goes back to the breaker.
                    if self.breaker.is_open and not is_probe:
                        continue
                    if not is_paced:
                        await self._calls.take(1)
                        await self._tokens.take(tokens)
                        is_paced = True
                    await self.gate()
                    if self.breaker.is_open and not is_probe:
                        continue
                    yield asyncio.get_running_loop().time()
                    return
            finally:
                if is_probe:
                    self.breaker.end_probe()

    async def gate(self) -> None:
        """Return when no wait that a provider asked for holds."""
        loop = asyncio.get_running_loop()
        while (wait_s := self._open_at - loop.time()) > 0:
            # Not all at the same moment when the gate opens.
            await asyncio.sleep(wait_s + random.uniform(0.0, min(0.5, wait_s / 4)))

    def count_tokens(self, taken: float, actual: float) -> None:
        """Settle the pace of tokens by what the call really used."""
        self._tokens.correct(actual - taken)

    def note_answer(self) -> None:
        """An answer came: more calls may be tried."""
        self.answered += 1
        self.breaker.note_answer()
        self._row = 0
        self._given_up = None
        self._answered_at = asyncio.get_running_loop().time()
        if self._answered_at >= self._steady_until:
            step = 1.0 / self._limit if self.throttled else GROWTH
            self._limit = min(float(self._most), self._limit + step)
            self._wake()

    def note_throttle(self, started_at: float, retry_after_s: float) -> None:
        """A call that started at `started_at` met a rate limit: close the gate."""
        now = asyncio.get_running_loop().time()
        self.throttled += 1
        wait_s = retry_after_s
        if started_at >= self._closed_at:  # later ones were under way when this episode began
            self._closed_at = now
            self._row += 1
            wait_s = max(wait_s, backoff_s(self._row))
            if now >= self._steady_until:
                self._limit = max(1.0, self._limit * SHRINK)
                self._steady_until = now + COOLDOWN_S
        self.hold(wait_s)

    def hold(self, wait_s: float) -> None:
        """Start no call for `wait_s` seconds, at most MAX_WAIT_S."""
        now = asyncio.get_running_loop().time()
        self._open_at = max(self._open_at, now + min(MAX_WAIT_S, wait_s))

    def give_up(self, fault: Fault, *, since: float) -> None:
        """Let no verdict that is due by now wait, where `since` nothing but rate limits came.

        Each bears them for its own time; one after the other that may be days.
        """
        if self._answered_at >= since:
            return
        self._given_up = asyncio.get_running_loop().time(), fault
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_exception(_outage(fault))

    @asynccontextmanager
    async def _slot(self, *, first: bool) -> AsyncIterator[None]:
        await self._turn(first=first)
        try:
            yield
        finally:
            self._free()

    async def _turn(self, *, first: bool) -> None:
        if self._running < self.limit and not self._queue:
            self._running += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if first:
            self._queue.appendleft(turn)
        else:
            self._queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                if turn.exception() is None:
                    self._free()
            else:
                with suppress(ValueError):
                    self._queue.remove(turn)
            raise

    def _free(self) -> None:
        self._running -= 1
        self._wake()

    def _wake(self) -> None:
        while self._queue and self._running < self.limit:
            turn = self._queue.popleft()
            if not turn.done():
                self._running += 1
                turn.set_result(None)


def _outage(fault: Fault) -> Outage:
    return Outage(fault.kind, fault.text)


def backoff_s(tries: int) -> float:
    """A random wait that grows with the number of tries so far (full jitter)."""
    return random.uniform(0.0, min(MAX_WAIT_S, BACKOFF_S * 2.0**tries))
