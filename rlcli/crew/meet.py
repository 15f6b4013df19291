"""How the ranks of a run find each other."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist

from rlcli.crew.watch import PATIENCE_S
from rlcli.errors import RankLostError
from rlcli.place import Place

LOOPBACK = "127.0.0.1"


@contextmanager
def process_group(place: Place, device: torch.device) -> Iterator[None]:
    """torch.distributed among the ranks of the run, by the address in the environment."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend, rank=place.rank, world_size=place.size, timeout=timedelta(seconds=PATIENCE_S)
    )
    try:
        yield
        dist.barrier()
    finally:
        dist.destroy_process_group()


@contextmanager
def group_of_one(device: torch.device) -> Iterator[None]:
    """torch.distributed for a process that trains alone."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it
    with TemporaryDirectory() as folder:
        dist.init_process_group(backend, init_method=f"file://{folder}/group", rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


def own_device(device: torch.device, place: Place) -> torch.device:
    """The device of this rank among those of its machine."""
    if device.type != "cuda":
        return device
    torch.cuda.set_device(place.local_rank)
    return torch.device("cuda", place.local_rank)


def connect(place: Place) -> list[Connection]:
    """On rank 0: a connection to each other rank, in order; elsewhere: the one to rank 0.

    Raises: RankLostError when the two do not come together.
    """
    if place.rank == 0:
        host = LOOPBACK if place.local_size == place.size else os.environ["MASTER_ADDR"]
        key = secrets.token_bytes(32)
        with Listener((host, 0), backlog=place.size, authkey=key) as listener:
            _share([listener.address, key])
            found: dict[int, Connection] = {}
            while len(found) < place.size - 1:
                try:
                    connection = listener.accept()
                except (AuthenticationError, EOFError, OSError):
                    continue  # a stranger
                found[connection.recv()] = connection
        return [found[rank] for rank in sorted(found)]
    address, key = _share([None, None])
    try:
        connection = Client(tuple(address), authkey=key)
        connection.send(place.rank)
    except (AuthenticationError, EOFError, OSError) as error:
        raise RankLostError(f"rank 0 does not answer at {address}: {error}") from error
    return [connection]


def _share(values: list[Any]) -> list[Any]:
    """Rank 0's values, on every rank."""
    dist.broadcast_object_list(values, src=0)
    return values
