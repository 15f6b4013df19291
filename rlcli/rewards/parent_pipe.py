"""A worker's end of the pipe to the process that started it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

GONE = (errno.EPIPE, errno.ECONNRESET, None)
"""Error numbers of a closed pipe; `Connection` sets None when it closes within a message."""


class ParentGone(Exception):
    """The parent has closed its end of the pipe: nobody waits for an answer."""


class ParentPipe:
    """Messages of bytes from and to the parent. fd: this end, inherited from the parent.

    Raises:
        ParentGone: the parent has closed its end or is dead.
    """

    def __init__(self, fd: int) -> None:
        self._connection = Connection(fd)

    def send(self, message: bytes) -> None:
        """Send one message."""
        with _watch_end():
            self._connection.send_bytes(message)

    def receive(self) -> bytes:
        """Wait for the next message."""
        with _watch_end():
            return self._connection.recv_bytes()


@contextmanager
def _watch_end() -> Iterator[None]:
    try:
        yield
    except EOFError as error:
        raise ParentGone from error
    except OSError as error:
        if error.errno not in GONE:
            raise
        raise ParentGone from error
