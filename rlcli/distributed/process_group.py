"""How the ranks of a run find each other."""

from __future__ import annotations

import os
import re
import secrets
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import HashStore, PrefixStore, Store
from torch.distributed.distributed_c10d import _set_pg_timeout

from rlcli.distributed.gather import Meeting, MeetingError, Member
from rlcli.distributed.rank_env import LOOPBACK, RankEnv, is_loopback_name, is_pod
from rlcli.distributed.watchdog import PATIENCE_S
from rlcli.errors import LaunchError, RankLostError
from rlcli.system.network import interface_of, own_address

MEETING_S = 120.0
"""How long processes may take to connect, once all have started."""
QUIET_S = 10.0
"""How long to wait for ranks before anything is shown."""
GLOO_TRIES = 5
"""How often gloo tries to connect; its timeout holds for each try."""
SOURCE = re.compile(r"\[\S+:\d+\] ")
"""The place in torch's source at which an error was raised; not every error has it."""
BROKEN = re.compile(
    "gloo|Application timeout caused pair closure|Timed out waiting [0-9]+ ?ms"
    "|Connection (closed|reset) by peer|Broken pipe|NCCL communicator was aborted"
    "|collective operation timeout"
)
CLOSED = re.compile("(closed|reset) by peer|Broken pipe")
ELSEWHERE = "192.0.2.1"
"""An address reserved for documentation: it is reached by the default route."""


@contextmanager
def process_group(
    ranks: RankEnv, *, is_cuda: bool, progress: Callable[[str], None]
) -> Iterator[RankGroup]:
    """Connect the ranks of the run by torch.distributed, and disconnect them at the end.

    progress: shows which ranks are missing. Raises: LaunchError if the network keeps ranks apart;
    RankLostError if one does not come.
    """
    choose_interface(ranks.master_addr, is_one_machine=ranks.is_one_machine)
    meeting = _meeting(ranks, progress)
    first, launcher_store = open_store(ranks)
    own = Member(number=ranks.rank, size=ranks.world_size, where=socket.gethostname())
    try:
        store, members = meeting.gather(first, own, key=secrets.token_hex(8))
    except MeetingError as error:
        raise RankLostError(str(error)) from error
    meeting.progress("")
    ranks = _with_local_rank(ranks, members)
    os.environ.update(ranks.variables())
    try:
        join_group(store, meeting, is_cuda=is_cuda)
    except MeetingError as error:
        if ranks.is_one_machine or ranks.restart_count:  # the network is not the cause
            raise RankLostError(str(error)) from error
        raise
    store.set_timeout(timedelta(seconds=PATIENCE_S))
    _set_pg_timeout(timedelta(seconds=PATIENCE_S))
    try:
        yield RankGroup(ranks, store, launcher_store)
    except BaseException:
        if not is_cuda:  # NCCL would wait for ranks that wait for this one
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


@dataclass(frozen=True, slots=True)
class RankGroup:
    """The connected ranks and their store. launcher_store: outlives a restart of the ranks."""

    ranks: RankEnv
    store: Store
    launcher_store: Store | None


def choose_interface(master: str, *, is_one_machine: bool = False) -> None:
    """Have gloo and NCCL use the interface to MASTER_ADDR, not the one of this host's name."""
    try:
        address = own_address(LOOPBACK) if is_one_machine else reachable_address(master)
    except (OSError, LaunchError):
        return
    if is_loopback_name(address) and not is_one_machine:
        return
    if interface := interface_of(address):
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, interface)


def _meeting(ranks: RankEnv, progress: Callable[[str], None] = lambda text: None) -> Meeting:
    return Meeting(
        unit="rank",
        number=ranks.rank,
        size=ranks.world_size,
        host=ranks.master_addr,
        port=ranks.master_port,
        limit_s=PATIENCE_S,
        is_service=is_pod(os.environ),
        least=ranks.world_size,
        quiet_s=QUIET_S,
        progress=progress if ranks.rank == 0 else lambda text: None,
    )


def open_store(ranks: RankEnv) -> tuple[Store, Store | None]:
    """(the store by which the ranks meet, the same store if it outlives restarts, else None)."""
    store, meeting = None, _meeting(ranks)
    if ranks.rank == 0 and not ranks.has_launcher_store:
        try:
            store = meeting.listen()
        except MeetingError:
            if not ranks.may_have_launcher_store:
                raise
    store = store or meeting.connect()
    if not (ranks.has_launcher_store or ranks.may_have_launcher_store):
        return store, None
    return (notes := launcher_notes(store, ranks.run_id)), notes


def launcher_notes(store: Store, run_id: str) -> Store:
    """The part of a launcher's store that rlcli uses."""
    return PrefixStore(f"rlcli/{run_id}", store)


def _with_local_rank(ranks: RankEnv, members: Sequence[Member]) -> RankEnv:
    """`ranks` with local rank and local world size, from host names if no variable has them."""
    if ranks.local_rank is not None and ranks.local_world_size is not None:
        return ranks
    hosts = {member.number: member.where for member in members}
    here = [rank for rank in sorted(hosts) if hosts[rank] == hosts[ranks.rank]]
    local_rank = ranks.local_rank
    return replace(
        ranks,
        local_rank=here.index(ranks.rank) if local_rank is None else local_rank,
        local_world_size=len(here),
        num_nodes=ranks.num_nodes or len(set(hosts.values())),
    )


def join_group(store: Store, meeting: Meeting, *, is_cuda: bool = False) -> None:
    """Connect this process with every other, within MEETING_S. Raises: MeetingError."""
    try:
        dist.init_process_group(
            _backend(is_cuda=is_cuda),
            store=store,
            rank=meeting.number,
            world_size=meeting.size,
            timeout=timedelta(seconds=MEETING_S / GLOO_TRIES),
        )
        _set_pg_timeout(timedelta(seconds=MEETING_S))
        dist.all_reduce(torch.zeros(1))  # over gloo: NCCL does not report why it waits
    except RuntimeError as error:
        raise meeting.error(
            f"cannot connect with all others: {why_broken(error)}",
            "open all TCP ports between the nodes, as MASTER_PORT alone is not enough, or set "
            "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to each node's interface of a network "
            "where they are open",
        ) from error


def _backend(*, is_cuda: bool) -> str:
    return "cpu:gloo,cuda:nccl" if is_cuda else "gloo"


@contextmanager
def group_of_one(device: torch.device) -> Iterator[None]:
    """torch.distributed for a process that trains alone."""
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it
    backend = _backend(is_cuda=device.type == "cuda")
    dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def is_broken_collective(error: Exception) -> bool:
    """Whether torch.distributed raised this because a rank has left or does not answer."""
    is_known = type(error) is RuntimeError and BROKEN.search(str(error)) is not None
    return is_known or isinstance(error, dist.DistError)


def is_closed(error: Exception) -> bool:
    """Whether torch.distributed raised this because another process closed its connection."""
    return CLOSED.search(str(error)) is not None


def why_broken(error: Exception) -> str:
    """The first line of an error of torch.distributed, without the place in its source."""
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
    """The UUID of the GPU, the same in every process; empty on a CPU."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""


def reachable_address(master: str, *, is_service: bool = False) -> str:
    """The address at which other machines reach this one: that of its route to `master`.

    If that is a loopback address, as for the name of this machine or of a service, the default
    route decides.
    """
    address = own_address(master)
    if not is_loopback_name(address) or (is_loopback_name(master) and not is_service):
        return address
    with suppress(OSError, LaunchError):
        return own_address(ELSEWHERE)
    return address
