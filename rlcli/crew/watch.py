"""Who is waited for, said while it lasts, and where everyone stands when it lasts too long."""

from __future__ import annotations

import faulthandler
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread

from rlcli.crew.lines import named
from rlcli.crew.words import BEAT_S, Inbox
from rlcli.engines.ranks import collectives_begun

FIRST_WORD_S = 60.0
LOOK_EVERY_S = 1.0
SILENT_BEATS = 3
PATIENCE_S = 30 * 60.0
"""How far ranks may be apart within an update or a pass before torch gives up, and how long a rank
that rank 0 waits for may be silent."""
DUMP_AT = 0.8


@contextmanager
def stack_dump(log: Path, *, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Inside, every thread's stack goes to the end of `log` at DUMP_AT of the patience."""
    with log.open("a") as file:
        faulthandler.dump_traceback_later(DUMP_AT * patience_s, file=file)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


@dataclass
class _Command:
    """What all ranks have been told to do, and how far they are as far as rank 0 knows.

    in_step: they begin the same collectives, so that who has begun fewer is waited for.
    """

    name: str
    in_step: bool
    next_word_s: float
    begun: float = field(default_factory=time.monotonic)
    begun_at: int = field(default_factory=collectives_begun)
    done: set[int] = field(default_factory=set[int])
    unheard_s: dict[int, float] = field(default_factory=dict[int, float])
    late: frozenset[int] = frozenset()
    slowest: float = 0
    waited_s: float = 0.0
    """How long others have been waiting for the slowest where it is."""


class Watch:
    """Says on rank 0 which ranks have not come as far as the others, or are silent.

    Where nothing has been told to all, the others wait for rank 0. beat_s: how often a rank says
    how far it is.
    """

    def __init__(
        self,
        inboxes: Mapping[int, Inbox],
        *,
        first_word_s: float = FIRST_WORD_S,
        beat_s: float = BEAT_S,
    ) -> None:
        self._inboxes = inboxes
        self._first_word_s, self._beat_s = first_word_s, beat_s
        self._turn_s = min(LOOK_EVERY_S, first_word_s, beat_s / 2)
        self.tell: Callable[[str], None] = lambda note: None
        self._ended = Event()
        self._command: _Command | None = None
        self._alone = ("", 0.0)
        self._next_word_s = first_word_s
        Thread(target=self._look, daemon=True).start()

    def begin(self, name: str, *, in_step: bool = True) -> None:
        """All ranks have been told to do something."""
        self._command = _Command(name, in_step, self._first_word_s)

    def done(self, rank: int) -> None:
        """A rank has done its share."""
        if self._command is not None:
            self._command.done.add(rank)

    @property
    def name(self) -> str:
        """What all ranks are doing."""
        return "" if self._command is None else self._command.name

    @property
    def late(self) -> list[int]:
        """The other ranks that were behind, or silent, when it looked last."""
        return [] if self._command is None else sorted(self._command.late - {0})

    def end(self) -> None:
        """All are done; rank 0 goes on with what it does alone."""
        self._command = None
        self.lead(self._alone[0])

    def lead(self, name: str) -> None:
        """What rank 0 does alone from here on; nothing is said of what has no name."""
        self._alone = (name, time.monotonic())
        self._next_word_s = self._first_word_s

    def close(self) -> None:
        """Say nothing more."""
        self._ended.set()

    def _look(self) -> None:
        while not self._ended.wait(self._turn_s):
            command = self._command
            if command is None:
                self._look_at_rank_0()
            elif time.monotonic() - command.begun >= self._beat_s:
                self._look_at_all(command)

    def _look_at_rank_0(self) -> None:
        name, since = self._alone
        seconds = time.monotonic() - since
        if name and seconds >= self._next_word_s:
            self._next_word_s = 2 * seconds
            self.tell(f"{named([0])} in {name} for {seconds:.0f} s, others waiting")

    def _look_at_all(self, command: _Command) -> None:
        """Time is counted in looks: while this process is stopped, others are not silent."""
        places = self._places(command)
        behind = self._behind(command, places)
        command.waited_s = command.waited_s + self._turn_s if behind else 0.0
        late = dict.fromkeys(behind, command.waited_s)
        silent = self._silent(command, places)
        late |= {rank: max(seconds, late.get(rank, 0.0)) for rank, seconds in silent.items()}
        command.late = frozenset(late)
        told = {rank for rank, seconds in late.items() if seconds >= command.next_word_s}
        if not told:
            return
        command.next_word_s = 2 * max(late.values())
        name, seconds = command.name, time.monotonic() - command.begun
        if heard := told - silent.keys():
            self.tell(f"{named(heard)} in {name} for {seconds:.0f} s, others waiting")
        if unheard := told & silent.keys():
            who, since = named(unheard), min(silent[rank] for rank in unheard)
            self.tell(f"{who} in {name} for {seconds:.0f} s, silent for {since:.0f} s")

    def _behind(self, command: _Command, places: Mapping[int, float]) -> list[int]:
        """The ranks that have come less far than others."""
        slowest = min(places.values())
        if slowest > command.slowest:
            command.slowest, command.waited_s = slowest, 0.0
            command.next_word_s = self._first_word_s
        behind = [rank for rank, place in places.items() if place == slowest]
        return behind if len(behind) < len(places) else []

    def _places(self, command: _Command) -> dict[int, float]:
        """How far each rank is."""
        own = collectives_begun() - command.begun_at if command.in_step else 0
        places = {0: math.inf if 0 in command.done else own}
        for rank, inbox in self._inboxes.items():
            # rollouts have a listener of their own, and may be long
            has_ended = rank in command.done or (command.in_step and inbox.look())
            known = inbox.place if command.in_step else 0
            places[rank] = math.inf if has_ended else known
        return places

    def _silent(self, command: _Command, places: Mapping[int, float]) -> dict[int, float]:
        """For how long nothing has been heard of ranks that should have said how far they are."""
        unheard_s = command.unheard_s
        for rank, inbox in self._inboxes.items():
            is_heard = inbox.was_heard or places[rank] == math.inf
            inbox.was_heard = False
            is_new = is_heard or rank not in unheard_s
            unheard_s[rank] = 0.0 if is_new else unheard_s[rank] + self._turn_s
        return {rank: s for rank, s in unheard_s.items() if s >= SILENT_BEATS * self._beat_s}
