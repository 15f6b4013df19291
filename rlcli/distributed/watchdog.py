"""Heartbeats of the ranks: which of them keep the others waiting, have failed or were to stop.

They go through the store by which the ranks met, so they also arrive while a rank waits in a
collective.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from threading import Event, Thread
from typing import NamedTuple

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store

from rlcli.distributed.collectives import collectives_begun
from rlcli.distributed.lines import named
from rlcli.run_dir.heartbeat import Unchanged
from rlcli.system.signals import STOPS, StopRequest

LOG = logging.getLogger(__name__)


FIRST_WARNING_S = 60.0
BEAT_S = 10.0
SILENT_BEATS = 3
PATIENCE_S = 30 * 60.0
"""Timeout of torch's collectives, and how long a rank that others wait for may be silent."""
DUMP_AT = 0.8
END_S = 5.0
POLL_S = 0.5
STOP_DELAY_S = 2.0
"""Wait before a signal is passed on: a launcher that signals every rank reaches rank 0 by then."""
STORE_FAILED = (dist.DistError, RuntimeError)
"""Errors of a store whose owner, rank 0 or the launcher, is gone."""


class Beat(NamedTuple):
    """What a rank does (name), for how long, and how many collectives it has begun (place)."""

    number: int
    place: int
    seconds: float
    name: str


NOT_HEARD = Beat(-1, 0, 0.0, "start")


class Heartbeats:
    """Sends this rank's heartbeats; on rank 0, reports ranks that are late or silent.

    Every rank begins the same collectives, so a rank that has begun fewer keeps the others waiting.
    log: gets this rank's stacks shortly before the timeout.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        store: Store,
        log: Path,
        *,
        first_warning_s: float = FIRST_WARNING_S,
        beat_s: float = BEAT_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._rank, self._size, self._log = rank, size, log
        self._first_word_s, self._beat_s, self._patience_s = first_warning_s, beat_s, patience_s
        self._store = PrefixStore("watch", store)
        self._beats = PrefixStore("watch", own_line(store))
        self.given_up = ""
        """The ranks that were silent for too long, as a message; empty if none was."""
        self.late: frozenset[int] = frozenset()
        """The ranks that were behind or silent when rank 0 last looked."""
        self.silent: frozenset[int] = frozenset()
        self._name, self._since = "start", time.monotonic()
        self._heard = dict.fromkeys([0] if rank else range(size), NOT_HEARD)
        self._silence = {other: Unchanged(beat_s) for other in self._heard}
        self._slowest, self._waited_s, self._next_word_s = -1, 0.0, first_warning_s
        self.stop: StopRequest | None = None
        """On rank 0: gets a signal that another rank received, unless it has had its own."""
        self._stops_s: list[tuple[int, float]] = []
        self._ended = Event()
        self._thread = Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    @contextmanager
    def doing(self, name: str) -> Iterator[None]:
        """Inside, this rank's heartbeats carry this name for what it does."""
        before, self._name, self._since = self._name, name, time.monotonic()
        try:
            yield
        finally:
            self._name, self._since = before, time.monotonic()

    def name_of(self, rank: int) -> str:
        """What a rank did at its last heartbeat; rank 0 reads all, the others that of rank 0."""
        return self._heard[rank].name if rank in self._heard else self._name

    def close(self) -> None:
        """Stop the thread. A thread inside a call of the store at exit aborts the process."""
        self._ended.set()
        self._thread.join(timeout=END_S)

    def pass_on_stops(self) -> None:
        """Ignore SIGTERM and Ctrl-C in this process; rank 0, which saves for all, gets the first.

        Call on ranks other than 0.
        """

        def on_signal(number: int, _: object) -> None:
            self._stops_s.append((number, time.monotonic()))

        for number in STOPS:
            signal.signal(number, on_signal)

    # -- why ranks end --------------------------------------------------------------------------

    def post_failure(self, text: str) -> None:
        """Post an error of this rank for all ranks; the first one posted counts."""
        with suppress(*STORE_FAILED):
            self._store.compare_set("failed", "", text)

    def failure(self) -> str:
        """The first error that a rank posted; empty if none."""
        return self._read("failed")

    def post_lost(self) -> None:
        """Let rank 0 know that this rank is alive and lost contact with another."""
        with suppress(*STORE_FAILED):
            self._store.set(f"lost/{self._rank}", "1")

    def unaccounted(self) -> list[int]:
        """Other ranks that have not posted that they lost contact."""
        others = [rank for rank in range(self._size) if rank != self._rank]
        return [rank for rank in others if not self._read(f"lost/{rank}")]

    def dismiss(self) -> None:
        """On rank 0: let the other ranks exit."""
        with suppress(*STORE_FAILED):
            self._store.set("dismissed", "1")

    def await_dismissal(self, limit_s: float) -> None:
        """Wait until rank 0 lets the other ranks exit, `limit_s` at most."""
        until_s = time.monotonic() + limit_s
        while time.monotonic() < until_s and not self._read("dismissed"):
            time.sleep(0.1)

    def _read(self, key: str) -> str:
        """A text in the store; empty if there is none."""
        with suppress(*STORE_FAILED):
            if self._store.check([key]):
                return self._store.get(key).decode()
        return ""

    # -- in the heartbeat thread ----------------------------------------------------------------

    def _run(self) -> None:
        with self._log.open("a") as log, suppress(*STORE_FAILED):
            number, before = 0, (-1, "")
            while True:
                beat = Beat(number, collectives_begun(), time.monotonic() - self._since, self._name)
                if before != (beat.place, beat.name):
                    before = beat.place, beat.name
                    self._dump_later(log)
                self._beats.set(str(self._rank), json.dumps(beat))
                self._look(beat)
                number += 1
                if self._is_ended_in(self._beat_s):
                    break
        faulthandler.cancel_dump_traceback_later()

    def _is_ended_in(self, seconds: float) -> bool:
        """Wait so long, unless `close` is called; meanwhile pass on signals."""
        until_s = time.monotonic() + seconds
        while (left_s := until_s - time.monotonic()) > 0:
            if self._ended.wait(min(left_s, POLL_S)):
                return True
            if self._stops_s and time.monotonic() - self._stops_s[0][1] >= STOP_DELAY_S:
                self._beats.set("stop", str(self._stops_s.pop(0)[0]))
            if self.stop is not None and self._beats.check(["stop"]):
                if self.stop.signal is None:
                    os.kill(os.getpid(), int(self._beats.get("stop")))
                self.stop = None
        return False

    def _dump_later(self, log: TextIOWrapper) -> None:
        """Write every thread's stack to the log in DUMP_AT of the timeout, unless called again."""
        faulthandler.dump_traceback_later(DUMP_AT * self._patience_s, file=log)

    def _look(self, own: Beat) -> None:
        """Read heartbeats. Silence is counted in looks: none while this process is suspended."""
        for rank in self._heard:
            if rank == self._rank:
                self._heard[rank] = own
            elif self._beats.check([str(rank)]):
                self._heard[rank] = Beat(*json.loads(self._beats.get(str(rank))))
            self._silence[rank].look(self._heard[rank].number)
        lost = [rank for rank, each in self._silence.items() if each.seconds >= self._patience_s]
        if lost:
            self.given_up = f"{named(lost)} did not answer in {self._heard[lost[0]].name}"
            self._beats.set("given_up", self.given_up)
        elif self._rank and self._beats.check(["given_up"]):
            self.given_up = self._beats.get("given_up").decode()
        if self._rank == 0:
            self._report_late()

    def _report_late(self) -> None:
        places = {rank: beat.place for rank, beat in self._heard.items()}
        behind = self._behind(places)
        self._waited_s = self._waited_s + self._beat_s if behind else 0.0
        limit_s = SILENT_BEATS * self._beat_s
        silent = {r: each.seconds for r, each in self._silence.items() if each.seconds >= limit_s}
        late = dict.fromkeys(behind, self._waited_s)
        late |= {rank: max(s, late.get(rank, 0.0)) for rank, s in silent.items()}
        self.late, self.silent = frozenset(late), frozenset(silent)
        reported = {rank for rank, s in late.items() if s >= self._next_word_s}
        if not reported:
            return
        self._next_word_s = 2 * max(late.values())
        if heard := sorted(reported - silent.keys()):
            first = self._heard[heard[0]]
            LOG.warning(f"{named(heard)} in {first.name} for {first.seconds:.0f} s, others waiting")
        if unheard := sorted(reported & silent.keys()):
            first, since = self._heard[unheard[0]], min(silent[rank] for rank in unheard)
            seconds, who = first.seconds + since, named(unheard)
            LOG.warning(f"{who} in {first.name} for {seconds:.0f} s, silent for {since:.0f} s")

    def _behind(self, places: Mapping[int, int]) -> list[int]:
        """The ranks that have begun fewer collectives than others."""
        slowest = min(places.values())
        if slowest > self._slowest:
            self._slowest, self._waited_s = slowest, 0.0
            self._next_word_s = self._first_word_s
        behind = [rank for rank, place in places.items() if place == slowest]
        return behind if len(behind) < len(places) else []


def own_line(store: Store) -> Store:
    """A second connection to the store: a call on the first may wait for another rank."""
    return store.clone()  # pyright: ignore[reportAttributeAccessIssue]
