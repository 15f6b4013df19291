"""Heartbeats of the ranks: which of them keep the others waiting, and which have failed.

They go through the store by which the ranks met, so they also arrive while a rank waits in a
collective.
"""

from __future__ import annotations

import faulthandler
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from threading import Event, Thread

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store

from rlcli.distributed.collectives import collectives_begun
from rlcli.distributed.lines import named
from rlcli.distributed.stops import own_line

FIRST_WARNING_S = 60.0
BEAT_S = 10.0
SILENT_BEATS = 3
PATIENCE_S = 30 * 60.0
"""Timeout of torch's collectives, and how long a rank that others wait for may be silent."""
DUMP_AT = 0.8
END_S = 5.0
STORE_FAILED = (dist.DistError, RuntimeError)
"""Errors of a store whose owner, rank 0 or the launcher, is gone."""


@dataclass(frozen=True, slots=True)
class Beat:
    """What a rank does (name), for how long, and how many collectives it has begun (place)."""

    number: int
    place: int
    seconds: float
    name: str

    def text(self) -> str:
        """The stored form."""
        return f"{self.number} {self.place} {self.seconds:.1f} {self.name}"


def read_beat(text: str) -> Beat:
    """The inverse of `Beat.text`."""
    number, place, seconds, name = text.split(" ", 3)
    return Beat(int(number), int(place), float(seconds), name)


class Watch:
    """Sends this rank's heartbeats; on rank 0, reports ranks that are late or silent.

    Every rank begins the same collectives, so a rank that has begun fewer keeps the others waiting.
    log: gets this rank's stacks shortly before the timeout. tell: shows the reports of rank 0.
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
        self.tell: Callable[[str], None] = lambda note: None
        self.given_up = ""
        """The ranks that were silent for too long, as a message; empty if none was."""
        self.late: frozenset[int] = frozenset()
        """The ranks that were behind or silent when rank 0 last looked."""
        self.silent: frozenset[int] = frozenset()
        self._name, self._since = "start", time.monotonic()
        self._heard = {0: Beat(0, 0, 0.0, "start")} if rank else _none_heard(size)
        self._unheard_s = dict.fromkeys(self._heard, 0.0)
        self._slowest, self._waited_s, self._next_word_s = -1, 0.0, first_warning_s
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
                self._beats.set(str(self._rank), beat.text())
                self._look(beat)
                number += 1
                if self._ended.wait(self._beat_s):
                    break
        faulthandler.cancel_dump_traceback_later()

    def _dump_later(self, log: TextIOWrapper) -> None:
        """Write every thread's stack to the log in DUMP_AT of the timeout, unless called again."""
        faulthandler.dump_traceback_later(DUMP_AT * self._patience_s, file=log)

    def _look(self, own: Beat) -> None:
        """Read heartbeats. Silence is counted in looks: none while this process is suspended."""
        for rank, last in self._heard.items():
            key = str(rank)
            is_there = rank != self._rank and self._beats.check([key])
            found = read_beat(self._beats.get(key).decode()) if is_there else last
            found = own if rank == self._rank else found
            is_new = found.number != last.number or rank == self._rank
            self._heard[rank] = found
            self._unheard_s[rank] = 0.0 if is_new else self._unheard_s[rank] + self._beat_s
        lost = [rank for rank, s in self._unheard_s.items() if s >= self._patience_s]
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
        silent = {rank: s for rank, s in self._unheard_s.items() if s >= limit_s}
        late = dict.fromkeys(behind, self._waited_s)
        late |= {rank: max(s, late.get(rank, 0.0)) for rank, s in silent.items()}
        self.late, self.silent = frozenset(late), frozenset(silent)
        reported = {rank for rank, s in late.items() if s >= self._next_word_s}
        if not reported:
            return
        self._next_word_s = 2 * max(late.values())
        if heard := sorted(reported - silent.keys()):
            first = self._heard[heard[0]]
            self.tell(f"{named(heard)} in {first.name} for {first.seconds:.0f} s, others waiting")
        if unheard := sorted(reported & silent.keys()):
            first, since = self._heard[unheard[0]], min(silent[rank] for rank in unheard)
            seconds, who = first.seconds + since, named(unheard)
            self.tell(f"{who} in {first.name} for {seconds:.0f} s, silent for {since:.0f} s")

    def _behind(self, places: Mapping[int, int]) -> list[int]:
        """The ranks that have begun fewer collectives than others."""
        slowest = min(places.values())
        if slowest > self._slowest:
            self._slowest, self._waited_s = slowest, 0.0
            self._next_word_s = self._first_word_s
        behind = [rank for rank, place in places.items() if place == slowest]
        return behind if len(behind) < len(places) else []


def _none_heard(size: int) -> dict[int, Beat]:
    return {rank: Beat(-1, 0, 0.0, "start") for rank in range(size)}
