"""How the ranks of a run find each other."""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.distributed_c10d import _set_pg_timeout

from rlcli.crew.lines import Missing
from rlcli.crew.watch import PATIENCE_S
from rlcli.doctor.network import interface_of, own_address
from rlcli.errors import LaunchError, RankLostError
from rlcli.rank_env import LOOPBACK, RankEnv, is_loopback_name

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
CLOSED = re.compile("(closed|reset) by peer|Broken pipe")
ELSEWHERE = "192.0.2.1"
"""An address kept for documentation: the way there is the default route."""


@contextmanager
def process_group(
    ranks: RankEnv, *, is_cuda: bool, tell: Callable[[str], None]
) -> Iterator[Meeting]:
    """torch.distributed among the ranks of the run; left alone if it ends with an error.

    tell: for the ranks that are waited for. Raises: LaunchError if the network keeps ranks apart;
    RankLostError if one does not come.
    """
    _choose_interface(ranks)
    store, launcher_store = open_store(ranks)
    _await_all(store, ranks, tell)
    meeting = Meeting(_with_local_rank(store, ranks), store, launcher_store)
    os.environ.update(meeting.ranks.variables())
    _join_group(store, meeting.ranks, is_cuda=is_cuda)
    try:
        yield meeting
    except BaseException:
        if not is_cuda:  # there it waits for ranks that wait for this one
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


@dataclass(frozen=True, slots=True)
class Meeting:
    """The ranks, once they are connected. launcher_store: outlives a restart of the ranks."""

    ranks: RankEnv
    store: Store
    launcher_store: Store | None


def _choose_interface(ranks: RankEnv) -> None:
    """Have gloo and NCCL take the way to MASTER_ADDR, not the one a host name may stand for."""
    try:
        address = own_address(LOOPBACK if ranks.is_one_machine else ranks.master_addr)
    except (OSError, LaunchError):
        return
    if is_loopback_name(address) and not ranks.is_one_machine:
        return
    if interface := interface_of(address):
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, interface)


def open_store(ranks: RankEnv) -> tuple[Store, Store | None]:
    """A store that only this start of the ranks uses, and the launcher's own where it has one.

    torch elastic keeps one store through all restarts, in which a start would find the keys of the
    one before (recovered 4 of 7 kills); so rank 0 opens a fresh one and leaves its address there.
    """
    host, port = ranks.master_addr, ranks.master_port
    first: Store | None = None
    if ranks.rank == 0 and not ranks.has_launcher_store:
        first = _listen(ranks)
    elif ranks.rank:
        await_listener(host, port, rank=ranks.rank)
    if first is None:
        first = _connect_store(host, port, ranks)
    if not (ranks.has_launcher_store or ranks.may_have_launcher_store):
        return first, None
    notes = launcher_notes(first, ranks.run_id)
    if ranks.rank == 0:
        return _announce(ranks, notes), notes
    return _find_announced(ranks, notes), notes


def launcher_notes(store: Store, run_id: str) -> Store:
    """The part of a launcher's store that is kept for the ranks of rlcli."""
    return PrefixStore(f"rlcli/{run_id}", store)


def open_launcher_store(ranks: RankEnv) -> Store | None:
    """The launcher's store, which outlives a restart; None if it has none."""
    if not ranks.has_launcher_store:
        return None
    store = _connect_store(ranks.master_addr, ranks.master_port, ranks)
    return launcher_notes(store, ranks.run_id)


def _listen(ranks: RankEnv) -> Store | None:
    """Rank 0's store at MASTER_PORT; None if the launcher may listen there, and something does."""
    try:
        return TCPStore(
            ranks.master_addr,
            ranks.master_port,
            ranks.world_size,
            is_master=True,
            timeout=timedelta(seconds=MEETING_S),
            wait_for_workers=False,
        )
    except dist.DistError as error:
        if ranks.may_have_launcher_store:
            return None
        raise LaunchError(
            f"rank 0 cannot listen at {ranks.master_addr}:{ranks.master_port} "
            f"({why_broken(error)}): set MASTER_ADDR to an address of rank 0's machine and "
            "MASTER_PORT to a port that is free there, the same for all ranks."
        ) from error


def _cannot_meet(ranks: RankEnv) -> RankLostError:
    """Rank 0 has just ended, or somebody else has its port."""
    return RankLostError(
        f"rank {ranks.rank} cannot meet others at {ranks.master_addr}:{ranks.master_port}"
    )


def _connect_store(host: str, port: int, ranks: RankEnv, *, limit_s: float = MEETING_S) -> Store:
    try:
        return TCPStore(
            host,
            port,
            ranks.world_size,
            is_master=False,
            timeout=timedelta(seconds=limit_s),
            wait_for_workers=False,
        )
    except dist.DistError as error:
        raise _cannot_meet(ranks) from error


def _announce(ranks: RankEnv, notes: Store) -> Store:
    """Rank 0's fresh store, its address left in the launcher's."""
    store = TCPStore(
        "localhost", 0, ranks.world_size, is_master=True,
        timeout=timedelta(seconds=MEETING_S), wait_for_workers=False,
    )  # fmt: skip
    host = LOOPBACK if ranks.is_one_machine else reachable_address(ranks.master_addr)
    mark = secrets.token_hex(8)
    store.set("mark", mark)
    notes.set("meeting", json.dumps([host, store.port, mark]))
    return store


def _find_announced(ranks: RankEnv, notes: Store) -> Store:
    """The store of this start's rank 0. An address that an earlier start left leads nowhere.

    Raises: LaunchError if nothing answers there at all, RankLostError if rank 0 never comes.
    """
    host, port = "", 0
    begun_s = heard_s = time.monotonic()
    while time.monotonic() - begun_s < PATIENCE_S:
        try:
            if notes.check(["meeting"]):
                host, port, mark = json.loads(notes.get("meeting"))
                socket.create_connection((host, port), timeout=TRY_S).close()
                store = _connect_store(host, port, ranks, limit_s=TRY_S)
                store.set_timeout(timedelta(seconds=MEETING_S))
                if store.check(["mark"]) and store.get("mark").decode() == mark:
                    return store
            heard_s = time.monotonic()
        except TimeoutError as error:
            if time.monotonic() - heard_s >= MEETING_S:
                raise _kept_apart(ranks.rank, f"no answer from {host}:{port} ({error})") from error
        except (OSError, RankLostError):
            heard_s = time.monotonic()
        except dist.DistError as error:
            raise _cannot_meet(ranks) from error
        time.sleep(TURN_S)
    raise RankLostError(f"rank 0 did not come within {PATIENCE_S:g} s")


def _with_local_rank(store: Store, ranks: RankEnv) -> RankEnv:
    """The ranks with this one's number among those of its machine, counted by host name."""
    if ranks.local_rank is not None and ranks.local_world_size is not None:
        return ranks
    hosts = [store.get(f"here/{rank}") for rank in range(ranks.world_size)]
    here = [rank for rank, host in enumerate(hosts) if host == hosts[ranks.rank]]
    local_rank = ranks.local_rank
    return replace(
        ranks,
        local_rank=here.index(ranks.rank) if local_rank is None else local_rank,
        local_world_size=len(here),
        num_nodes=ranks.num_nodes or len(set(hosts)),
    )


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


def _await_all(store: Store, ranks: RankEnv, tell: Callable[[str], None]) -> None:
    """Wait until every rank is there; rank 0 names the missing ones."""
    try:
        store.set(f"here/{ranks.rank}", socket.gethostname())
        if ranks.rank:
            store.wait(["all"], timedelta(seconds=PATIENCE_S))
            return
        left = set(range(1, ranks.world_size))
        missing = Missing(tell, limit_s=PATIENCE_S)
        while left := {rank for rank in left if not store.check([f"here/{rank}"])}:
            missing.look(left)
            time.sleep(TURN_S)
        store.set("all", "1")
    except dist.DistError as error:
        raise RankLostError("rank 0 is gone") from error


def _join_group(store: Store, ranks: RankEnv, *, is_cuda: bool) -> None:
    """Connect every rank with every other within MEETING_S; from then on with patience."""
    try:
        dist.init_process_group(
            _backend(is_cuda=is_cuda),
            store=store,
            rank=ranks.rank,
            world_size=ranks.world_size,
            timeout=timedelta(seconds=MEETING_S / GLOO_TRIES),
        )
        _set_pg_timeout(timedelta(seconds=MEETING_S))
        dist.all_reduce(torch.zeros(1))  # over gloo: NCCL does not tell what keeps it waiting
    except RuntimeError as error:
        why = why_broken(error)
        if ranks.is_one_machine or ranks.restart_count:  # they could speak before
            raise RankLostError(f"rank {ranks.rank} lost contact with another: {why}") from error
        raise _kept_apart(ranks.rank, why) from error
    store.set_timeout(timedelta(seconds=PATIENCE_S))
    _set_pg_timeout(timedelta(seconds=PATIENCE_S))


def _backend(*, is_cuda: bool) -> str:
    return "cpu:gloo,cuda:nccl" if is_cuda else "gloo"


@contextmanager
def group_of_one(device: torch.device) -> Iterator[None]:
    """torch.distributed for a process that trains alone."""
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it
    with TemporaryDirectory() as folder:
        meeting = f"file://{folder}/group"
        dist.init_process_group(
            _backend(is_cuda=device.type == "cuda"), init_method=meeting, rank=0, world_size=1
        )
        try:
            yield
        finally:
            dist.destroy_process_group()


def is_broken_collective(error: Exception) -> bool:
    """Whether this is what torch.distributed says of a rank that has left or does not answer."""
    is_told = type(error) is RuntimeError and BROKEN.search(str(error)) is not None
    return is_told or isinstance(error, dist.DistError)


def is_closed(error: Exception) -> bool:
    """Whether another process has ended, as far as torch.distributed knows."""
    return CLOSED.search(str(error)) is not None


def why_broken(error: Exception) -> str:
    """The first line of what torch.distributed says, without where it says it."""
    return SOURCE.sub("", str(error).partition("\n")[0]).rstrip(".")


def own_device(device: torch.device, ranks: RankEnv) -> torch.device:
    """The device of this rank among those of its machine."""
    if device.type == "mps":
        raise LaunchError(
            "several processes cannot share Apple's MPS. Leave --n_gpus out, or use "
            "train.device=cpu."
        )
    if device.type != "cuda":
        return device
    visible = torch.cuda.device_count()
    # SLURM and Ray may show each rank its own GPU alone, under the number 0
    index = 0 if visible == 1 else ranks.local_rank or 0
    if index >= visible:
        raise LaunchError(
            f"LOCAL_RANK={index}, but rank {ranks.rank} sees {visible} GPUs: start as "
            "many processes on a machine as it has GPUs, or see CUDA_VISIBLE_DEVICES."
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def gpu_id(device: torch.device) -> str:
    """The GPU's own number, the same in every process; empty on a CPU."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""


def reachable_address(master: str) -> str:
    """The address at which other machines reach rank 0's, which runs this.

    A machine's own name may stand for a loopback address there.
    """
    address = own_address(master)
    if is_loopback_name(master) or not is_loopback_name(address):
        return address
    with suppress(OSError, LaunchError):
        return own_address(ELSEWHERE)
    return address
