"""How the nodes of a run meet: in the store of node 0, then in torch's rendezvous in that store."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import Store, TCPStore
from torch.distributed.elastic.rendezvous import RendezvousInfo
from torch.distributed.elastic.rendezvous.api import RendezvousTimeoutError
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import (
    DynamicRendezvousHandler,
    RendezvousTimeout,
)

from rlcli.distributed.agree import versions
from rlcli.distributed.gather import GRACE_S, STORE_LIMIT, Meeting, MeetingError, Member
from rlcli.distributed.process_group import choose_interface, join_group, reachable_address
from rlcli.distributed.rank_env import LOOPBACK, NodeEnv, is_loopback_name
from rlcli.errors import LaunchError
from rlcli.launcher.job import Job, Limits
from rlcli.launcher.nodes import Nodes
from rlcli.system.finding import Finding
from rlcli.system.network import within

KEEP_ALIVES, KEEP_ALIVE_TRIES = 4, 5
"""Keep-alives in torch's rendezvous during Limits.silence_s, and how many a node may miss: more,
so that a node is named as lost before another can take its place."""
LATE_CALL_S = 5
"""Seconds that further nodes have to join a restart, once it has train.min_nodes."""


def meeting_of(node: NodeEnv, limits: Limits, progress: Callable[[str], None]) -> Meeting:
    """Where and when the nodes meet."""
    return Meeting(
        unit="node",
        number=node.node_rank,
        size=node.nnodes,
        host=node.master_addr,
        port=node.master_port,
        limit_s=limits.meeting_s,
        least=node.min_nodes,
        last_call_s=limits.last_call_s,
        is_service=node.is_pod,
        progress=progress,
    )


def gather_nodes(meeting: Meeting, command: str) -> tuple[TCPStore, Store, list[Member]]:
    """(node 0's store, a part of it, all nodes that came). command: the same on every node.

    Raises: MeetingError if they do not meet or do not fit together.
    """
    store = meeting.connect() if meeting.number else meeting.listen()
    where = socket.gethostname()
    with suppress(OSError, LaunchError):  # a pod may not know the name by which others reach it
        where += f" {reachable_address(meeting.host)}"
    facts = versions() | {"command": command}
    own = Member(number=meeting.number, size=meeting.size, where=where, facts=facts)
    return store, *meeting.gather(store, own, key="met")  # late nodes read this key too


def check_nodes(meeting: Meeting) -> list[Finding]:
    """Findings, the same on all nodes: do they meet, match in versions and reach each other?"""
    try:
        _, part, members = gather_nodes(meeting, "rlcli doctor --nodes")
    except MeetingError as error:
        return list(error.findings)
    choose_interface(meeting.host)
    found = Finding("network", "ok", "the nodes reach each other")
    try:
        join_group(part, meeting)
        dist.destroy_process_group()
    except MeetingError as error:
        found = replace(error.findings[0], name="network")
    meeting.leave(part, meeting.size)
    return [*meeting.compare(members), found]


def open_store(job: Job, progress: Callable[[str], None]) -> tuple[TCPStore, str]:
    """(the store of the run, the address at which the ranks of this node reach it)."""
    if job.launch.nnodes == 1:
        store = TCPStore(LOOPBACK, 0, is_master=True, wait_for_workers=False, timeout=STORE_LIMIT)
        return store, LOOPBACK
    try:
        store, _, _ = gather_nodes(meeting_of(job.launch, job.limits, progress), "rlcli train")
    finally:
        progress("")
    address = job.launch.master_addr
    if is_loopback_name(address) and job.launch.is_pod:  # only node 0 can use it
        address = reachable_address(address, is_service=True)
    return store, address


class Rendezvous(DynamicRendezvousHandler):
    """torch's c10d rendezvous over a store that all restarts and all ranks share.

    Nodes are ranked by their node rank, so that node 0 is always first.
    """

    nodes: Nodes | None = None
    limit_s: float

    @property
    def use_agent_store(self) -> bool:
        """Ranks use the store at MASTER_ADDR and MASTER_PORT, which is this one."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """See base class. Raises: RendezvousTimeoutError, even if the store does not answer."""
        try:
            return within(self.limit_s, super().next_rendezvous)
        except TimeoutError as error:
            raise RendezvousTimeoutError from error

    def num_nodes_waiting(self) -> int:
        """See base class."""
        return 0 if self.nodes is None else self.nodes.num_waiting


def make_rendezvous(job: Job, store: TCPStore, run_id: str, nodes: Nodes | None) -> Rendezvous:
    """The rendezvous of this node in `store`."""
    # with the ranks' store shared by torch, its address would have to sort like the node ranks
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    limits, launch = job.limits, job.launch
    handler = Rendezvous.from_backend(
        run_id,
        store,
        C10dRendezvousBackend(store, run_id),
        launch.min_nodes,
        launch.nnodes,
        local_addr=f"{launch.node_rank:06d}",
        timeout=RendezvousTimeout(
            join=timedelta(seconds=limits.meeting_s), last_call=timedelta(seconds=LATE_CALL_S)
        ),
        keep_alive_interval=max(1, round(limits.silence_s / KEEP_ALIVES)),
        keep_alive_max_attempt=KEEP_ALIVE_TRIES,
    )
    handler.nodes, handler.limit_s = nodes, limits.meeting_s + GRACE_S
    if nodes is not None:
        nodes.count_waiting = super(Rendezvous, handler).num_nodes_waiting
    return handler
