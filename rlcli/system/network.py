"""Ports, addresses and interfaces of this machine, and calls with a time limit."""

from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from threading import Thread
from typing import TypeVar

from rlcli.errors import LaunchError

T = TypeVar("T")


def holder(port: int) -> str:
    """The process listening on `port`, as far as this user's permissions show."""
    try:
        import psutil
    except ImportError:
        return "another process"
    try:
        for connection in psutil.net_connections("tcp"):
            here = connection.laddr
            if connection.status == "LISTEN" and here and here.port == port and connection.pid:
                return f"process {connection.pid} ({psutil.Process(connection.pid).name()})"
    except psutil.Error:
        pass
    return "another process"


def interface_of(address: str) -> str:
    """Name of the network interface with `address`; empty if unknown."""
    try:
        import psutil
    except ImportError:
        return ""
    for name, addresses in psutil.net_if_addrs().items():
        if any(found.address.split("%")[0] == address for found in addresses):
            return name
    return ""


def own_address(master: str) -> str:
    """This node's address on the route to `master`, which may be a proxy service.

    Raises: LaunchError if it has none.
    """
    found = socket.getaddrinfo(master, 1, type=socket.SOCK_DGRAM)
    for family, kind, protocol, _, address in sorted(
        found, key=lambda row: row[0] == socket.AF_INET6
    ):
        with socket.socket(family, kind, protocol) as probe, suppress(OSError):
            probe.connect(address)  # connecting a UDP socket sends nothing
            return str(probe.getsockname()[0])
    raise LaunchError(
        f"this machine has no way to MASTER_ADDR={master}. Set it to node 0's address in the "
        "network that joins the nodes."
    )


def within(limit_s: float, ask: Callable[[], T]) -> T:
    """Call `ask` with a time limit, and return or raise its result.

    Raises: TimeoutError after limit_s. A name server may block `ask` much longer, so its thread
    is left behind.
    """
    answer = Future[T]()

    def run() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:
            answer.set_exception(error)

    Thread(target=run, daemon=True).start()
    return answer.result(max(0.0, limit_s))
