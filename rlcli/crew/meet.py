"""How the ranks of a run find each other."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist

from rlcli.crew.watch import PATIENCE_S
from rlcli.engines.ranks import from_first
from rlcli.errors import LaunchError, RankLostError
from rlcli.place import LOOPBACK, Place


@contextmanager
def process_group(place: Place, device: torch.device) -> Iterator[None]:
    """torch.distributed among the ranks of the run; left alone where it ends with an error."""
    meeting = "env://"
    if place.is_one_machine:  # nobody else is to find it
        name = f".group-{os.getppid()}-{place.relaunches}"
        meeting = f"file://{place.run_dir / name}"
        if place.rank == 0:
            _forget_meetings(place.run_dir, but=name)
    dist.init_process_group(
        _backend(device),
        init_method=meeting,
        rank=place.rank,
        world_size=place.size,
        timeout=timedelta(seconds=PATIENCE_S),
    )
    try:
        yield
    except BaseException:
        if device.type != "cuda":  # there it waits for ranks that wait for this one
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()
    if place.rank == 0:
        _forget_meetings(place.run_dir)


def _backend(device: torch.device) -> str:
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def _forget_meetings(folder: Path, *, but: str = "") -> None:
    for file in folder.glob(".group-*"):
        if file.name != but:
            file.unlink(missing_ok=True)


def leave_together() -> None:
    """Wait until every rank is about to go."""
    dist.barrier()


@contextmanager
def group_of_one(device: torch.device) -> Iterator[None]:
    """torch.distributed for a process that trains alone."""
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it
    with TemporaryDirectory() as folder:
        meeting = f"file://{folder}/group"
        dist.init_process_group(_backend(device), init_method=meeting, rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


def is_broken_collective(error: Exception) -> bool:
    """Whether this is what torch.distributed says when another rank has left."""
    is_gloo = type(error) is RuntimeError and "gloo" in str(error)
    return is_gloo or isinstance(error, dist.DistError)


def own_device(device: torch.device, place: Place) -> torch.device:
    """The device of this rank among those of its machine."""
    if device.type == "mps":
        raise LaunchError(
            "several processes cannot share Apple's MPS. Leave --n_gpus out, or use "
            "train.device=cpu."
        )
    if device.type != "cuda":
        return device
    torch.cuda.set_device(place.local_rank)
    return torch.device("cuda", place.local_rank)


def connect(place: Place) -> list[Connection]:
    """On rank 0: a connection to each other rank, in order; elsewhere: the one to rank 0.

    Raises: RankLostError when the two do not come together.
    """
    if place.rank == 0:
        host = LOOPBACK if place.is_one_machine else _own_address(os.environ["MASTER_ADDR"])
        key = secrets.token_bytes(32)
        with Listener((host, 0), backlog=place.size, authkey=key) as listener:
            from_first([listener.address, key])
            found: dict[int, Connection] = {}
            while len(found) < place.size - 1:
                try:
                    connection = listener.accept()
                except (AuthenticationError, EOFError, OSError):
                    continue  # a stranger
                found[connection.recv()] = connection
        return [found[rank] for rank in sorted(found)]
    address, key = from_first([None, None])
    try:
        connection = Client(tuple(address), authkey=key)
        connection.send(place.rank)
    except (AuthenticationError, EOFError, OSError) as error:
        raise RankLostError(f"rank 0 does not answer at {address}: {error}") from error
    return [connection]


def _own_address(master: str) -> str:
    """This node's address on the way to `master`, which may be a service in front of it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((master, 1))
        return probe.getsockname()[0]
