"""Send weights from the trainer to a server's workers over a socket, one tensor at a time.

A worker that received an offer connects back, sends the offer's key and then reads:
length of a header (4 bytes, 0 at the end), header (JSON: name, dtype, shape), the tensor's bytes.
"""

from __future__ import annotations

import hmac
import json
import math
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

KEY_BYTES = 32
WELCOME = b"+"
SILENT_S = 300.0
"""Timeout for the other side's next byte, in seconds."""
CONNECT_S = 30.0
AUTH_TIMEOUT_S = 10.0
"""Timeout for a connecting worker to send its key, in seconds."""
TICK_S = 0.2
HEADER_LIMIT = 1 << 16


class WeightServer:
    """Listener on `host` that sends weights to workers with the key. For a single use."""

    def __init__(self, host: str) -> None:
        self.key = secrets.token_hex(KEY_BYTES // 2)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family)
        self._listener.settimeout(TICK_S)
        self.host, self.port = self._listener.getsockname()[:2]
        self.connections: list[socket.socket] = []

    def meet(self, count: int, *, is_over: Callable[[], bool]) -> None:
        """Wait for `count` workers. Raises: ConnectionError if no more will come."""
        deadline_s = time.monotonic() + SILENT_S
        while len(self.connections) < count:
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                if is_over() or time.monotonic() > deadline_s:
                    raise ConnectionError(
                        f"{len(self.connections)} of {count} workers came for the weights "
                        f"to {self.host}:{self.port}"
                    ) from None
                continue
            if self._knows_key(connection):
                self.connections.append(connection)
            else:
                connection.close()

    def close(self) -> None:
        """Close all connections, even of workers that wait for more."""
        for each in self.connections:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for each in (self._listener, *self.connections):
            each.close()

    def _knows_key(self, connection: socket.socket) -> bool:
        connection.settimeout(AUTH_TIMEOUT_S)
        try:
            shown = bytes(_read(connection, KEY_BYTES))
            if not hmac.compare_digest(shown, self.key.encode()):
                return False
            connection.sendall(WELCOME)
        except OSError:
            return False
        connection.settimeout(SILENT_S)
        return True


def send(
    weights: Iterable[tuple[str, Tensor]], offers: Sequence[WeightServer]
) -> dict[WeightServer, OSError]:
    """Send all `weights` to all workers. Returns the servers that lost a worker, with the error.

    `weights` is always read to its end, because other ranks may take part in producing it.
    """
    failed: dict[WeightServer, OSError] = {}
    lines = [(offer, line) for offer in offers for line in offer.connections]

    def pass_on(pair: tuple[WeightServer, socket.socket], parts: Sequence[Any]) -> None:
        offer, line = pair
        if offer in failed:
            return
        try:
            for part in parts:
                line.sendall(part)
        except OSError as error:
            failed[offer] = error

    with ThreadPoolExecutor(max(1, len(lines))) as pool:
        try:
            for name, tensor in weights:
                parts = _packed(name, tensor)
                list(pool.map(pass_on, lines, [parts] * len(lines)))
            list(pool.map(pass_on, lines, [[bytes(4)]] * len(lines)))
        except BaseException:
            for offer in offers:
                offer.close()
            raise
    return failed


def receive(host: str, port: int, key: str) -> Iterator[tuple[str, Tensor]]:
    """Receive the offered weights, on the CPU. Raises: ConnectionError, at first or later.

    The connection is made, and the key accepted, before this returns.
    """
    connection = socket.create_connection((host, port), timeout=CONNECT_S)
    connection.settimeout(SILENT_S)
    try:
        connection.sendall(key.encode())
        if bytes(_read(connection, len(WELCOME))) != WELCOME:
            raise ConnectionError("not an offer of weights")
    except OSError as error:
        connection.close()
        raise ConnectionError(f"the trainer at {host}:{port} gives no weights: {error}") from error
    return _tensors(connection)


def _tensors(connection: socket.socket) -> Iterator[tuple[str, Tensor]]:
    with connection:
        while length := int.from_bytes(_read(connection, 4), "big"):
            if length > HEADER_LIMIT:
                raise ConnectionError("the weights came garbled")
            name, dtype_name, shape = json.loads(bytes(_read(connection, length)))
            dtype = getattr(torch, dtype_name)
            data = torch.empty(math.prod(shape) * dtype.itemsize, dtype=torch.uint8)
            _read_into(connection, data.numpy().data)
            yield name, data.view(dtype).view(shape)


def _packed(name: str, tensor: Tensor) -> list[Any]:
    """A tensor's header and bytes."""
    at_hand = tensor.detach().to("cpu").contiguous()
    header = json.dumps([name, str(at_hand.dtype).removeprefix("torch."), list(at_hand.shape)])
    data = at_hand.reshape(-1).view(torch.uint8).numpy()
    return [len(header.encode()).to_bytes(4, "big") + header.encode(), data.data]


def _read(connection: socket.socket, length: int) -> bytearray:
    data = bytearray(length)
    _read_into(connection, memoryview(data))
    return data


def _read_into(connection: socket.socket, room: memoryview) -> None:
    while room:
        count = connection.recv_into(room)
        if not count:
            raise ConnectionError("the connection ended before the weights did")
        room = room[count:]


def route_to(host: str, port: int) -> str:
    """Address of this machine on the route to `host`. Raises: OSError."""
    with socket.create_connection((host, port), timeout=CONNECT_S) as connection:
        return connection.getsockname()[0]
