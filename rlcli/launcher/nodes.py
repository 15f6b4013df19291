"""What the agents of several nodes tell each other through torch's store.

Every agent sends heartbeats, the deaths of its ranks and the signals it gets; the agent of node 0
sends back whether the run is restarted or ends.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread
from typing import Any

from torch.distributed import Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.elastic.rendezvous import RendezvousInfo
from torch.distributed.elastic.rendezvous.api import RendezvousTimeoutError
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import (
    DynamicRendezvousHandler,
    RendezvousTimeout,
)

from rlcli.doctor.finding import Finding
from rlcli.doctor.network import own_address, within
from rlcli.doctor.nodes import Meeting, Met, gather
from rlcli.errors import LaunchError
from rlcli.launcher.job import Death, End, Job
from rlcli.rank_env import LOOPBACK, is_loopback_name

COMMAND = "rlcli train"
SHOWN_CAUSES = 2
TURN_S = 0.1
STORE_LIMIT_S = 60.0
FLUSH_LIMIT_S = 2.0
END_LIMIT_S = 2.0
GOODBYE_LIMIT_S = 5.0
"""Seconds that the other nodes have to read that the run has ended."""
GRACE_S = 15.0
KEEP_ALIVE_S, KEEP_ALIVE_TRIES = 5, 3
"""How often a node renews its place in torch's rendezvous, and after how many it loses it."""
LATE_CALL_S = 5
"""What other living nodes get to come to a restart, if it can do without them."""


class Nodes:
    """Exchanges messages with the agents of the other nodes, in a thread.

    A store that no longer answers blocks its caller for ever, so no other thread calls it.

    lost: by node, why it is gone; at node 0 any other node, elsewhere node 0. num_waiting: nodes
    that want to join. run_path: the run directory, once rank 0 has chosen it. end: what node 0 has
    decided.
    """

    def __init__(self, job: Job, find_path: Callable[[Store], Path | None]) -> None:
        self.lost: dict[int, str] = {}
        self.num_waiting = 0
        self.run_path: Path | None = None
        self.end: End | None = None
        self.is_controller = True
        self.count_waiting: Callable[[], int] = lambda: 0
        self._node, self._silence_s = job.launch.node_rank, job.limits.silence_s
        self._find_path = find_path
        self._rank = self._num_sent = 0
        self._outbox: deque[tuple[str, str]] = deque()
        self._received: deque[dict[str, Any]] = deque()
        self._heard_s: dict[int, float] = {}
        self._left: set[int] = set()
        self._answered_s = time.monotonic()
        self._stop = Event()
        self._thread: Thread | None = None

    def begin(self, store: Store, run_store: Store, *, rank: int, num: int) -> None:
        """The nodes have met in `store`, this one as `rank` of `num`."""
        self.close()
        self.lost, self.end, self.num_waiting = {}, None, 0
        self._left, self._num_sent = set(), 0
        self._rank, self.is_controller = rank, rank == 0
        self._answered_s = time.monotonic()
        self._heard_s = dict.fromkeys(range(1, num), self._answered_s)
        self._received.clear()
        self._outbox = deque([(f"node/{rank}", str(self._node))])
        self._stop = Event()
        stores = [each.clone() for each in (store, run_store)]  # pyright: ignore[reportAttributeAccessIssue]
        self._thread = Thread(target=self._talk, args=(*stores, self._stop), daemon=True)
        self._thread.start()

    def send_death(self, death: Death) -> None:
        """Tell node 0 how a rank of this node ended."""
        self._send_news({"death": asdict(death)})

    def send_signal(self, number: int) -> None:
        """Tell node 0 that this agent got a signal."""
        self._send_news({"signal": number})

    def _send_news(self, message: dict[str, Any]) -> None:
        self._outbox.append((f"news/{self._rank}/{self._num_sent}", json.dumps(message)))
        self._num_sent += 1

    def received(self) -> tuple[list[Death], list[int]]:
        """(deaths of ranks, signals) on the other nodes since the last call."""
        deaths: list[Death] = []
        signals: list[int] = []
        while self._received:
            message = self._received.popleft()
            if "death" in message:
                deaths.append(Death(**message["death"]))
            else:
                signals.append(message["signal"])
        return deaths, signals

    def send_end(self, end: End) -> None:
        """Tell all other nodes how this start of the ranks ends."""
        self._outbox.append(("end", json.dumps(asdict(end))))
        self._await(lambda: not self._outbox, FLUSH_LIMIT_S)

    def await_goodbyes(self) -> None:
        """Wait for the other nodes, which need the store of node 0 until they have left."""
        self._await(lambda: self._left >= self._heard_s.keys(), GOODBYE_LIMIT_S)

    def leave(self) -> None:
        """Tell node 0 that this one needs its store no more."""
        self._outbox.append((f"left/{self._rank}", ""))
        self._await(lambda: not self._outbox, FLUSH_LIMIT_S)

    def close(self) -> None:
        """Stop talking. A thread that is in a call of the store at exit aborts the process."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=END_LIMIT_S)

    def check_store(self) -> None:
        """Note that node 0 is lost if its store has not answered for too long."""
        silent_s = time.monotonic() - self._answered_s
        if not self.is_controller and silent_s > self._silence_s:
            self.lost.setdefault(0, f"no answer from it for {self._silence_s:g} s")

    def _await(self, is_so: Callable[[], bool], limit_s: float) -> None:
        deadline_s = time.monotonic() + limit_s
        while not is_so() and not self.lost and time.monotonic() < deadline_s:
            time.sleep(TURN_S / 2)

    def _talk(self, store: Store, run_store: Store, stop: Event) -> None:
        beat, seen, names = 0, Counter[int](), dict[int, int]()
        beats = dict[int, bytes]()
        try:
            while not stop.is_set():
                while self._outbox:
                    key, text = self._outbox[0]
                    store.set(key, text)
                    self._outbox.popleft()
                if self.is_controller:
                    self._look_at_others(store, seen, names, beats)
                else:
                    beat += 1
                    store.set(f"beat/{self._rank}", str(beat))
                    if store.check(["end"]) and self.end is None:
                        self.end = End(**json.loads(store.get("end")))
                if self.run_path is None:
                    self.run_path = self._find_path(run_store)
                self.num_waiting = self.count_waiting()
                self._answered_s = time.monotonic()
                stop.wait(TURN_S)
        except (RuntimeError, ValueError) as error:
            if not stop.is_set() and not self.is_controller:
                self.lost.setdefault(0, f"its store is gone ({type(error).__name__})")

    def _look_at_others(
        self, store: Store, seen: Counter[int], names: dict[int, int], beats: dict[int, bytes]
    ) -> None:
        now_s = time.monotonic()
        frozen_s = max(0.0, now_s - self._answered_s - 1.0)  # while this machine stood still
        for rank in self._heard_s:
            self._heard_s[rank] += frozen_s
            if rank not in names and store.check([f"node/{rank}"]):
                names[rank] = int(store.get(f"node/{rank}"))
            if store.check([f"left/{rank}"]):
                self._left.add(rank)
            beat = store.get(f"beat/{rank}") if store.check([f"beat/{rank}"]) else b""
            if beat != beats.get(rank, b""):
                beats[rank], self._heard_s[rank] = beat, now_s
            while store.check([key := f"news/{rank}/{seen[rank]}"]):
                self._received.append(json.loads(store.get(key)))
                seen[rank] += 1
            if now_s - self._heard_s[rank] > self._silence_s:
                why = f"no heartbeat from it for {self._silence_s:g} s"
                self.lost.setdefault(names.get(rank, rank), why)


class Rendezvous(DynamicRendezvousHandler):
    """torch's c10d rendezvous over a store that all restarts and all ranks share.

    Nodes are ranked by their node rank, so that node 0 is always first.
    """

    nodes: Nodes | None = None
    limit_s = 0.0

    @property
    def use_agent_store(self) -> bool:
        """Ranks use the store at MASTER_ADDR and MASTER_PORT, which is this one."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """See base class. Raises: RendezvousTimeoutError, even if the store does not answer."""
        if self.nodes is None:
            return super().next_rendezvous()
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
        keep_alive_interval=KEEP_ALIVE_S,
        keep_alive_max_attempt=KEEP_ALIVE_TRIES,
    )
    handler.nodes, handler.limit_s = nodes, limits.meeting_s + GRACE_S
    if nodes is not None:
        nodes.count_waiting = super(Rendezvous, handler).num_nodes_waiting
    return handler


def open_store(job: Job, tell: Callable[[str], None]) -> tuple[TCPStore, str]:
    """(the store of the run, the address at which the ranks of this node reach it)."""
    timeout = timedelta(seconds=STORE_LIMIT_S)
    if job.launch.nnodes == 1:
        store = TCPStore(LOOPBACK, 0, is_master=True, wait_for_workers=False, timeout=timeout)
        return store, LOOPBACK
    met = gather(meeting_of(job), tell)
    tell("")
    refuse(met.findings, job.launch.nnodes)
    assert met.store is not None
    met.store.set_timeout(timeout)
    return met.store, _address_of_store(job, met)


def meeting_of(job: Job) -> Meeting:
    """Where and when the agents meet."""
    launch = job.launch
    return Meeting(
        rank=launch.node_rank,
        nnodes=launch.nnodes,
        min_nodes=launch.min_nodes,
        host=launch.master_addr or "",
        port=launch.master_port,
        timeout_s=job.limits.meeting_s,
        last_call_s=job.limits.last_call_s,
        command=COMMAND,
        listens_anywhere=launch.is_pod,
    )


def _address_of_store(job: Job, met: Met) -> str:
    """MASTER_ADDR, or where the others see node 0 if that is of use to node 0 alone."""
    address = job.launch.master_addr or ""
    if not is_loopback_name(address) or len(met.hellos) < 2:
        return address
    return own_address(met.hellos[1].address)


def refuse(findings: Sequence[Finding], nnodes: int) -> None:
    """Raises: LaunchError in three lines if something is bad."""
    bad = [finding for finding in findings if finding.level == "bad"]
    if not bad:
        return
    causes = "; ".join(f"{finding.name}: {finding.says}" for finding in bad[:SHOWN_CAUSES])
    if bad[SHOWN_CAUSES:]:
        causes += f"; and {', '.join(finding.name for finding in bad[SHOWN_CAUSES:][:5])}"
    raise LaunchError(
        f"these {nnodes} nodes cannot train together: {causes}.\nWhat to do: {bad[0].cure}"
    )
