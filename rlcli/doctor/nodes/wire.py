"""What the nodes say to each other: lines of a magic word and JSON, never longer than a limit."""

from __future__ import annotations

import json
import socket
from typing import Any

MAGIC = b"rlcli 1 "
HELLO_LIMIT = 4096
"""Bytes of a line to node 0, where anybody may connect."""
VERDICT_LIMIT = 1 << 20
TEXT_LIMIT = 300
"""Characters of one text from another machine."""


SEND_LIMIT_S = 2.0


class StrangerError(Exception):
    """What came is not from rlcli."""


def line(message: dict[str, Any]) -> bytes:
    """`message` as it is sent."""
    return MAGIC + json.dumps(message).encode() + b"\n"


class Lines:
    """Messages out of the bytes of one connection."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = b""

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The messages that `data` completes.

        Raises: StrangerError as soon as no message can come of it.
        """
        *whole, self._held = (self._held + data).split(b"\n")
        messages = [self._parse(text) for text in whole]
        starts_wrong = self._held[: len(MAGIC)] != MAGIC[: len(self._held)]
        if starts_wrong or len(self._held) > self._limit:
            raise StrangerError
        return messages

    def _parse(self, text: bytes) -> dict[str, Any]:
        if not text.startswith(MAGIC) or len(text) > self._limit:
            raise StrangerError
        try:
            message = json.loads(text.removeprefix(MAGIC))
        except (ValueError, RecursionError) as error:
            raise StrangerError from error
        if not isinstance(message, dict):
            raise StrangerError
        return message


class Channel:
    """A connection on which both sides speak in such lines, the received ones up to a limit.

    unread: messages that came behind the one last looked for.
    """

    def __init__(self, connection: socket.socket, limit: int) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.unread: list[dict[str, Any]] = []
        self._lines = Lines(limit)

    @property
    def own_address(self) -> str:
        """Of this side."""
        return str(self.connection.getsockname()[0]).split("%")[0]

    def fileno(self) -> int:
        return self.connection.fileno()

    def send(self, message: dict[str, Any]) -> None:
        """Raises: OSError when the other side is gone, or takes nothing for SEND_LIMIT_S."""
        self.connection.settimeout(SEND_LIMIT_S)
        self.connection.sendall(line(message))
        self.connection.setblocking(False)

    def read(self, wait_s: float = 0.0) -> list[dict[str, Any]]:
        """The messages that have come; none after wait_s.

        Raises: StrangerError; ConnectionResetError at the end of the connection, OSError.
        """
        found, self.unread = self.unread, []
        if found:
            return found
        self.connection.settimeout(wait_s)
        try:
            data = self.connection.recv(1 << 16)
        except (BlockingIOError, TimeoutError):
            return []
        if not data:
            raise ConnectionResetError
        return self._lines.feed(data)

    def finish(self) -> None:
        """Say that nothing more comes; the other side may still speak. Raises: OSError."""
        self.connection.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.connection.close()


def plain(text: object) -> str:
    """A text from another machine that can do nothing to a terminal.

    Raises: StrangerError when it is no text.
    """
    if not isinstance(text, str):
        raise StrangerError
    return "".join(c if c.isprintable() else "?" for c in text[:TEXT_LIMIT])


def whole_number(value: object) -> int:
    """`value`, an int below a million.

    Raises: StrangerError for anything else.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1_000_000:
        raise StrangerError
    return value
