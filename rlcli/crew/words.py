"""What another rank says to rank 0: rollouts, its end, and how far it is while something lasts."""

from __future__ import annotations

import pickle
import time
from collections import deque
from multiprocessing.connection import Connection
from threading import Event, Lock, Thread
from typing import Any

from rlcli.engines.ranks import collectives_begun

BEAT_S = 10.0
"""How often a rank says how far it is, in what lasts longer than that."""
ENDS = ("done", "lost", "error")
TURN_S = 1.0


class Outbox:
    """This rank's words to rank 0, whole whichever thread says them."""

    def __init__(self, connection: Connection, *, beat_s: float = BEAT_S) -> None:
        self._connection, self._beat_s = connection, beat_s
        self._sending, self._ended = Lock(), Event()
        self._begun: tuple[float, int] | None = None
        Thread(target=self._beat, daemon=True).start()

    def begin(self) -> None:
        """Rank 0 has said what to do."""
        self._begun = time.monotonic(), collectives_begun()

    def say(self, *words: Any) -> None:
        """Something on the way. Raises: OSError when rank 0 is gone."""
        message = pickle.dumps(words)
        with self._sending:
            self._connection.send_bytes(message)

    def end(self, *words: Any) -> None:
        """The last word of what rank 0 has said to do. Raises: OSError when rank 0 is gone."""
        with self._sending:
            self._begun = None
            self._connection.send_bytes(pickle.dumps(words))

    def close(self) -> None:
        """Say nothing more by itself."""
        self._ended.set()

    def _beat(self) -> None:
        while not self._ended.wait(self._beat_s):
            with self._sending:
                if self._begun is None or time.monotonic() - self._begun[0] < self._beat_s:
                    continue
                place = collectives_begun() - self._begun[1]
                try:
                    self._connection.send_bytes(pickle.dumps(("at", place)))
                except OSError:
                    return  # the thread that works finds it out by itself


class Inbox:
    """A rank's words, in order, for who waits for them; how far it is, for who looks on.

    place: collectives it has begun in what it does, as it said last. was_heard: set by any word,
    cleared by who looks on.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection, self._reading = connection, Lock()
        self._words = deque[tuple[Any, ...]]()
        self.place, self.was_heard = 0, False

    def take(self, timeout_s: float | None = None) -> tuple[Any, ...] | None:
        """The next word; None where it says nothing at all for so long, not how far it is either.

        Time is counted in turns: while this process is stopped, others are not silent.
        Raises: BlockingIOError in the midst of a word, EOFError, OSError.
        """
        silent_s = 0.0
        with self._reading:
            while not self._words:
                turn_s = None if timeout_s is None else min(TURN_S, timeout_s - silent_s)
                if self._connection.poll(turn_s):
                    self._read()
                    silent_s = 0.0
                elif timeout_s is not None and turn_s is not None:
                    silent_s += turn_s
                    if silent_s >= timeout_s:
                        return None
            return self._words.popleft()

    def look(self) -> bool:
        """Whether it has ended what it does, read without waiting."""
        if not self._reading.acquire(blocking=False):
            return False  # who waits for it reads
        try:
            while self._connection.poll():
                self._read()
        except (EOFError, OSError):
            return True  # gone: that is told elsewhere
        finally:
            self._reading.release()
        return bool(self._words) and self._words[-1][0] in ENDS

    def _read(self) -> None:
        words = pickle.loads(self._connection.recv_bytes())
        self.was_heard = True
        if words[0] == "at":
            self.place = words[1]
            return
        if words[0] in ENDS:
            self.place = 0
        self._words.append(words)
