"""Spares a judge that does not answer, and asks now and then whether it is back."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from dataclasses import dataclass

from rlcli.rewards.judge.faults import Fault, Kind, Outage

FAILURES = 10
"""Failures in a row, of any calls, that open it."""
BREAK_S = 30.0
"""Seconds without a call, before each probe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How many probes may fail while a verdict waits: from `since`, the loop time it was due."""

    probes: int
    since: float


class Breaker:
    """Lets calls through until FAILURES of them in a row had no answer. Used within one event loop.

    Then none starts for BREAK_S, and one after it: an answer to it lets all through again, a
    failure holds them for another BREAK_S.
    openings: how often it opened.
    """

    def __init__(self) -> None:
        self.openings = 0
        self._failures = 0
        self._probes_failed_at: list[float] = []
        self._opened_at = math.inf
        self._is_probing = False
        self._cause = ""
        self._changed = asyncio.Event()

    @property
    def is_open(self) -> bool:
        """Whether calls are held."""
        return self._opened_at < math.inf

    @property
    def cause(self) -> str:
        """What the last call without an answer met."""
        return self._cause

    async def wait(self, patience: Patience, *, deadline: float) -> bool:
        """Return when a call may start: whether it is the probe, to be followed by `end_probe`.

        deadline: loop time at which it gives up.

        Raises:
            Outage: it gave up, then or because too many probes failed.
        """
        loop = asyncio.get_running_loop()
        while self.is_open:
            now = loop.time()
            probe_at = math.inf if self._is_probing else self._opened_at + BREAK_S
            if self._is_over(patience) or now >= deadline:
                raise Outage(Kind.TRANSIENT, self._cause)
            if now >= probe_at:
                self._is_probing = True
                return True
            until = min(probe_at, deadline)
            with suppress(TimeoutError):
                async with asyncio.timeout_at(until if until < math.inf else None):
                    await self._changed.wait()
        return False

    def note_answer(self) -> None:
        """A call was answered, whatever it said: the judge is there."""
        self._failures = 0
        if self.is_open:
            self._opened_at = math.inf
            self._wake()

    def note_failure(self, started_at: float, fault: Fault) -> bool:
        """A call that started at `started_at` had no answer: whether this opened the breaker."""
        was_open = self.is_open
        self._failures += 1
        # Calls that were under way when it opened say nothing new.
        if started_at < self._opened_at if was_open else self._failures < FAILURES:
            return False
        now = asyncio.get_running_loop().time()
        self._probes_failed_at = [*self._probes_failed_at, now] if was_open else []
        self.openings += not was_open
        self._cause = fault.text
        self._opened_at = now
        self._wake()
        return not was_open

    def end_probe(self) -> None:
        """The probe ended, also without an answer or a failure: another may be the next."""
        self._is_probing = False
        self._wake()

    def _is_over(self, patience: Patience) -> bool:
        failed = sum(at >= patience.since for at in self._probes_failed_at)
        return failed >= patience.probes

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
