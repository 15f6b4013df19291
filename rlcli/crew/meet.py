"""How the ranks of a run find each other."""

from __future__ import annotations

import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore, Store, TCPStore
from torch.distributed.distributed_c10d import _set_pg_timeout

from rlcli.crew.lines import KEY_BYTES, Missing, enter, let_in, open_door
from rlcli.crew.watch import PATIENCE_S
from rlcli.engines.ranks import from_first
from rlcli.errors import LaunchError, RankLostError
from rlcli.place import LOOPBACK, Place

MEETING_S = 120.0
"""How long ranks that are all there may take to reach each other."""
GLOO_TRIES = 5
"""How often gloo tries to connect, each time for as long as it is given."""
TRY_S, TURN_S = 5.0, 0.1
SOURCE = re.compile(r"\[\S+:\d+\] ")
"""Where in torch's own source an error was raised; gloo does not always say it."""
BROKEN = re.compile(
    "gloo|Application timeout caused pair closure|Timed out waiting [0-9]+ ?ms"
    "|Connection (closed|reset) by peer|Broken pipe|NCCL communicator was aborted"
    "|collective operation timeout"
)
V6 = socket.AF_INET6


@contextmanager
def process_group(
    place: Place, device: torch.device, *, tell: Callable[[str], None]
) -> Iterator[None]:
    """torch.distributed among the ranks of the run; left alone where it ends with an error.

    tell: for who is waited for. Raises: LaunchError where the network keeps ranks apart;
    RankLostError where one does not come.
    """
    store = _store(place)
    _await_all(store, place, tell)
    _join_group(store, place, device)
    try:
        yield
    except BaseException:
        if device.type != "cuda":  # there it waits for ranks that wait for this one
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()
    if place.rank == 0 and place.is_one_machine:
        _forget_meetings(place.run_dir)


def _store(place: Place) -> Store:
    """Where ranks leave word for each other before they are connected."""
    if place.is_one_machine:  # a file: nobody else is to find it
        name = f".group-{os.getppid()}-{place.relaunches}"
        if place.rank == 0:
            _forget_meetings(place.run_dir, but=name)
        return FileStore(str(place.run_dir / name), place.size)
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if place.rank:
        await_listener(host, port, rank=place.rank)
    try:
        return TCPStore(
            host,
            port,
            place.size,
            is_master=place.rank == 0,
            timeout=timedelta(seconds=MEETING_S),
            wait_for_workers=False,
        )
    except dist.DistError as error:  # rank 0 has just ended, or somebody else has its port
        raise RankLostError(f"rank {place.rank} cannot meet others at {host}:{port}") from error


def await_listener(host: str, port: int, *, rank: int) -> None:
    """Wait until rank 0 listens there: what refuses a connection may listen a little later.

    Raises: LaunchError where nothing answers at all, RankLostError where rank 0 never comes.
    """
    begun_s = heard_s = time.monotonic()
    while time.monotonic() - begun_s < PATIENCE_S:
        try:
            socket.create_connection((host, port), timeout=TRY_S).close()
            return
        except ConnectionRefusedError:
            heard_s = time.monotonic()
        except OSError as error:
            if time.monotonic() - heard_s >= MEETING_S:
                raise _kept_apart(rank, f"no answer from {host}:{port} ({error})") from error
        time.sleep(TURN_S)
    raise RankLostError(f"rank 0 did not come to {host}:{port} within {PATIENCE_S:g} s")


def _kept_apart(rank: int, why: str) -> LaunchError:
    return LaunchError(
        f"rank {rank} cannot speak with all other ranks: {why}.\n"
        "Ranks connect at ports that the system chooses; MASTER_PORT alone is not enough.\n"
        "Open all TCP ports between the nodes, or set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME "
        "to each node's interface of a network where they are open."
    )


def _await_all(store: Store, place: Place, tell: Callable[[str], None]) -> None:
    """Wait until every rank is there; rank 0 says who is not."""
    try:
        store.set(f"here/{place.rank}", "1")
        if place.rank:
            store.wait(["all"], timedelta(seconds=PATIENCE_S))
            return
        left = set(range(1, place.size))
        missing = Missing(tell, limit_s=PATIENCE_S)
        while left := {rank for rank in left if not store.check([f"here/{rank}"])}:
            missing.look(left)
            time.sleep(TURN_S)
        store.set("all", "1")
    except dist.DistError as error:
        raise RankLostError("rank 0 is gone") from error


def _join_group(store: Store, place: Place, device: torch.device) -> None:
    """Connect every rank with every other within MEETING_S; from then on with patience."""
    try:
        dist.init_process_group(
            _backend(device),
            store=store,
            rank=place.rank,
            world_size=place.size,
            timeout=timedelta(seconds=MEETING_S / GLOO_TRIES),
        )
        _set_pg_timeout(timedelta(seconds=MEETING_S))
        dist.all_reduce(torch.zeros(1))  # over gloo: NCCL does not tell what keeps it waiting
    except RuntimeError as error:
        why = why_broken(error)
        if place.is_one_machine or place.relaunches:  # they could speak before
            raise RankLostError(f"rank {place.rank} lost contact with another: {why}") from error
        raise _kept_apart(place.rank, why) from error
    store.set_timeout(timedelta(seconds=PATIENCE_S))
    _set_pg_timeout(timedelta(seconds=PATIENCE_S))


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
    """Whether this is what torch.distributed says of a rank that has left or does not answer."""
    is_told = type(error) is RuntimeError and BROKEN.search(str(error)) is not None
    return is_told or isinstance(error, dist.DistError)


def why_broken(error: Exception) -> str:
    """The first line of what torch.distributed says, without where it says it."""
    return SOURCE.sub("", str(error).partition("\n")[0]).rstrip(".")


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


def connect(place: Place, *, tell: Callable[[str], None]) -> list[Connection]:
    """On rank 0: a connection to each other rank, in order; elsewhere: the one to rank 0.

    Raises: RankLostError when the two do not come together.
    """
    if place.rank == 0:
        host = LOOPBACK if place.is_one_machine else own_address(os.environ["MASTER_ADDR"])
        key = secrets.token_bytes(KEY_BYTES)
        with open_door(host, size=place.size) as door:
            from_first([door.getsockname(), key])
            return let_in(door, key, size=place.size, limit_s=MEETING_S, tell=tell)
    address, key = from_first([None, None])
    return [enter(address, key, rank=place.rank, limit_s=MEETING_S)]


def own_address(master: str) -> str:
    """This node's address on the way to `master`, which may be a service in front of it.

    Raises: LaunchError where it has none.
    """
    found = socket.getaddrinfo(master, 1, type=socket.SOCK_DGRAM)
    for family, kind, protocol, _, address in sorted(found, key=lambda row: row[0] == V6):
        with socket.socket(family, kind, protocol) as probe, suppress(OSError):
            probe.connect(address)  # sends nothing
            return str(probe.getsockname()[0])
    raise LaunchError(
        f"this machine has no way to MASTER_ADDR={master}. Set it to node 0's address in the "
        "network that joins the nodes."
    )
