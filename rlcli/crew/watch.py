"""Who is waited for, said while it lasts, and where everyone stands when it lasts too long."""

from __future__ import annotations

import faulthandler
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Event, Thread

from rlcli.crew.lines import named

FIRST_WORD_S = 60.0
LOOK_EVERY_S = 1.0
PATIENCE_S = 30 * 60.0
"""How far ranks may be apart within an update or a pass before torch gives up."""
DUMP_AT = 0.8


@contextmanager
def stack_dump(log: Path) -> Iterator[None]:
    """Inside, every thread's stack goes to the end of `log` at DUMP_AT of the patience."""
    with log.open("a") as file:
        faulthandler.dump_traceback_later(DUMP_AT * PATIENCE_S, file=file)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


class Watch:
    """Says on rank 0 which ranks have not finished what the others have.

    Where nothing has been told to all, the others wait for rank 0.
    """

    def __init__(
        self, connections: Mapping[int, Connection], *, first_word_s: float = FIRST_WORD_S
    ) -> None:
        self._connections = connections
        self._first_word_s = first_word_s
        self.tell: Callable[[str], None] = lambda note: None
        self._ended = Event()
        self._doing: tuple[str, float] | None = None
        self._alone = ("", 0.0)
        self._done = set[int]()
        self._next_word = first_word_s
        Thread(target=self._look, daemon=True).start()

    def begin(self, name: str) -> None:
        """All ranks have been told to do something."""
        self._done, self._doing = set(), (name, time.monotonic())
        self._next_word = self._first_word_s

    def done(self, rank: int) -> None:
        """A rank has done its share."""
        self._done.add(rank)

    def end(self) -> None:
        """All are done; rank 0 goes on with what it does alone."""
        self._doing = None
        self.lead(self._alone[0])

    def lead(self, name: str) -> None:
        """What rank 0 does alone from here on; nothing is said of what has no name."""
        self._alone = (name, time.monotonic())
        if self._doing is None:
            self._next_word = self._first_word_s

    def close(self) -> None:
        """Say nothing more."""
        self._ended.set()

    def _look(self) -> None:
        while not self._ended.wait(min(LOOK_EVERY_S, self._first_word_s)):
            doing = self._doing
            name, since = doing or self._alone
            seconds = time.monotonic() - since
            if not name or seconds < self._next_word:
                continue
            self._next_word = 2 * seconds
            late = self._late() if doing else [0]
            if late:
                self.tell(f"{named(late)} in {name} for {seconds:.0f} s, others waiting")

    def _late(self) -> list[int]:
        """Ranks that are still at it, where others are not."""
        busy = [] if 0 in self._done else [0]
        for rank, connection in self._connections.items():
            if rank not in self._done and not _has_word(connection):
                busy.append(rank)
        return busy if len(busy) <= len(self._connections) else []


def _has_word(connection: Connection) -> bool:
    try:
        return connection.poll()
    except OSError:
        return True  # gone: that is told elsewhere
