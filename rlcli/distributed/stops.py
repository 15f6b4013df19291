"""Forwards SIGTERM and Ctrl-C from other ranks to rank 0, which saves for all."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from threading import Event, Thread
from typing import Any

import torch.distributed as dist
from torch.distributed import Store

from rlcli.system.signals import STOPS, StopRequest

POLL_S = 0.5
DELAY_S = 2.0
"""Wait before forwarding: a launcher that signals every rank reaches rank 0 in this time."""
END_S = 5.0


def send_stops(store: Store) -> Callable[[], None]:
    """Ignore signals in this process, and pass the first one on to rank 0.

    Returns the function that ends this; call it before the process exits.
    """
    arrived: list[int] = []
    for number in STOPS:
        signal.signal(number, lambda number, frame: arrived.append(number))
    return _start(_send, store, arrived)


def receive_stops(store: Store, stop: StopRequest) -> Callable[[], None]:
    """On rank 0: obey a signal that another rank received, unless this one has had its own.

    Returns the function that ends this; call it before the process exits.
    """
    return _start(_receive, store, stop)


def _start(
    work: Callable[[Store, Any, Event], None], store: Store, about: Any
) -> Callable[[], None]:
    """Work in a thread. A thread inside a call of the store at exit aborts the process."""
    ended = Event()
    thread = Thread(target=work, args=(own_line(store), about, ended), daemon=True)
    thread.start()

    def end() -> None:
        ended.set()
        thread.join(timeout=END_S)

    return end


def _send(store: Store, arrived: list[int], ended: Event) -> None:
    while not arrived:
        if ended.wait(POLL_S):
            return
    if ended.wait(DELAY_S):
        return
    with suppress(dist.DistError):  # rank 0 has ended
        store.set("stop", str(arrived[0]))


def _receive(store: Store, stop: StopRequest, ended: Event) -> None:
    with suppress(dist.DistError):
        while not ended.wait(POLL_S):
            if store.check(["stop"]):
                number = int(store.get("stop"))
                if stop.signal is None:
                    os.kill(os.getpid(), number)
                return


def own_line(store: Store) -> Store:
    """A second connection to the store: a call on the first may wait for another rank."""
    return store.clone()  # pyright: ignore[reportAttributeAccessIssue]
