"""One connection between rank 0 and each other rank, opened by who knows the run's key."""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge

from rlcli.errors import RankLostError
from rlcli.lang import translator

KEY_BYTES = 32
GREETING_S = 5
"""What a guest gets to show that it knows the key; others wait meanwhile."""
FIRST_WORD_S = 10.0
SHOWN = 8
NOT_OURS = (AuthenticationError, EOFError, OSError)


def speaker(lang: str) -> Callable[[str], None]:
    """What tells whoever looks on, in `lang`, while there is no console yet."""
    translate = translator(lang)

    def tell(text: str) -> None:
        with suppress(OSError, ValueError):  # nobody looks on any more
            print(translate(text), file=sys.stderr, flush=True)

    return tell


def named(ranks: Collection[int]) -> str:
    """`rank 1`, `ranks 1, 3`, and how many more where they are many."""
    some = sorted(ranks)[:SHOWN]
    more = f" and {len(ranks) - SHOWN} more" if len(ranks) > SHOWN else ""
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, some)) + more


class Missing:
    """Says now and then which ranks are waited for, and gives up after `limit_s`."""

    def __init__(self, tell: Callable[[str], None], *, limit_s: float) -> None:
        self._tell, self._limit_s = tell, limit_s
        self._begun_s = time.monotonic()
        self._next_word_s = FIRST_WORD_S

    def look(self, ranks: Collection[int]) -> None:
        """These are not there. Raises: RankLostError."""
        seconds = time.monotonic() - self._begun_s
        if seconds >= self._limit_s:
            raise RankLostError(f"{named(ranks)} did not come within {self._limit_s:g} s")
        if seconds >= self._next_word_s:
            self._next_word_s = 2 * seconds
            self._tell(f"waiting for {named(ranks)} ({seconds:.0f} s)")


def open_door(host: str, *, size: int) -> socket.socket:
    """Rank 0 listens at a port of `host`, an address of IPv4 or IPv6."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, 0), family=family, backlog=size)


def let_in(
    door: socket.socket, key: bytes, *, size: int, limit_s: float, tell: Callable[[str], None]
) -> list[Connection]:
    """Rank 0's connections to ranks 1 to size - 1, in order.

    Raises: RankLostError, which names those that did not come within limit_s.
    """
    found: dict[int, Connection] = {}
    missing = Missing(tell, limit_s=limit_s)
    door.settimeout(min(1.0, limit_s))
    while left := set(range(1, size)) - found.keys():
        missing.look(left)
        try:
            guest, _ = door.accept()
            rank, connection = _greet(guest, key)
        except NOT_OURS:
            continue  # nobody, or a stranger
        found[rank] = connection
    return [found[rank] for rank in sorted(found)]


def _greet(guest: socket.socket, key: bytes) -> tuple[int, Connection]:
    guest.setblocking(True)
    _limit(guest, socket.SO_RCVTIMEO, GREETING_S)
    with guest:
        connection = Connection(guest.dup().detach())
        deliver_challenge(connection, key)
        answer_challenge(connection, key)
        rank = connection.recv()
        _limit(guest, socket.SO_RCVTIMEO, 0)
    return rank, connection


def _limit(line: socket.socket, what: int, seconds: float) -> None:
    """For whoever uses its descriptor too; 0: no limit."""
    whole, part = divmod(seconds, 1)
    line.setsockopt(socket.SOL_SOCKET, what, struct.pack("ll", int(whole), int(part * 1e6)))


def limit(connection: Connection, seconds: float) -> None:
    """From here on what neither comes nor goes for so long ends with BlockingIOError."""
    with socket.socket(fileno=os.dup(connection.fileno())) as line:
        _limit(line, socket.SO_RCVTIMEO, seconds)
        _limit(line, socket.SO_SNDTIMEO, seconds)


def enter(address: Sequence[str | int], key: bytes, *, rank: int, limit_s: float) -> Connection:
    """A rank's connection to rank 0. Raises: RankLostError."""
    host, port = str(address[0]), int(address[1])
    try:
        line = socket.create_connection((host, port), timeout=limit_s)
        line.settimeout(None)
        connection = Connection(line.detach())
        answer_challenge(connection, key)
        deliver_challenge(connection, key)
        connection.send(rank)
    except NOT_OURS as error:
        raise RankLostError(f"rank 0 does not answer at {host}:{port}: {error}") from error
    return connection
