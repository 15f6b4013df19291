"""Messages between the agents of several nodes, through torch's store.

Every agent sends heartbeats, the deaths of its ranks and the signals it gets; the agent of node 0
sends back whether the run is restarted or ends.
"""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from threading import Event, Thread
from typing import Any

from torch.distributed import Store

from rlcli.distributed.stops import own_line
from rlcli.launcher.job import Death, End, Job

POLL_S = 0.1
FLUSH_LIMIT_S = 2.0
END_LIMIT_S = 2.0
GOODBYE_LIMIT_S = 5.0
"""Seconds that the other nodes have to read that the run has ended."""


class Nodes:
    """Exchanges messages with the agents of the other nodes, in a thread.

    A store that no longer answers blocks its caller for ever, so no other thread calls it.

    lost: by node, why it is gone; node 0 tracks all other nodes, the others only node 0.
    num_waiting: nodes that want to join. run_path: the run directory, once rank 0 has chosen it.
    end: the decision of node 0.
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
        """Start to exchange messages with the nodes that met in `store`, as `rank` of `num`."""
        self.close()
        self.lost, self.end, self.num_waiting = {}, None, 0
        self._left, self._num_sent = set(), 0
        self._rank, self.is_controller = rank, rank == 0
        self._answered_s = time.monotonic()
        self._heard_s = dict.fromkeys(range(1, num), self._answered_s)
        self._received.clear()
        self._outbox = deque([(f"node/{rank}", str(self._node))])
        self._stop = Event()
        stores = own_line(store), own_line(run_store)
        self._thread = Thread(target=self._talk, args=(*stores, self._stop), daemon=True)
        self._thread.start()

    def send_death(self, death: Death) -> None:
        """Report to node 0 how a rank of this node ended."""
        self._send_news({"death": asdict(death)})

    def send_signal(self, number: int) -> None:
        """Report to node 0 a signal that this agent received."""
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
        """Send all other nodes how this start of the ranks ends."""
        self._outbox.append(("end", json.dumps(asdict(end))))
        self._await(lambda: not self._outbox, FLUSH_LIMIT_S)

    def await_goodbyes(self) -> None:
        """Wait for the other nodes, which need the store of node 0 until they have left."""
        self._await(lambda: self._left >= self._heard_s.keys(), GOODBYE_LIMIT_S)

    def leave(self) -> None:
        """Let node 0 know that this node no longer needs its store."""
        self._outbox.append((f"left/{self._rank}", ""))
        self._await(lambda: not self._outbox, FLUSH_LIMIT_S)

    def close(self) -> None:
        """Stop the thread. A thread inside a call of the store at exit aborts the process."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=END_LIMIT_S)

    def check_store(self) -> None:
        """Count node 0 as lost if its store has not answered for too long."""
        silent_s = time.monotonic() - self._answered_s
        if not self.is_controller and silent_s > self._silence_s:
            self.lost.setdefault(0, f"no answer from it for {self._silence_s:g} s")

    def _await(self, is_so: Callable[[], bool], limit_s: float) -> None:
        deadline_s = time.monotonic() + limit_s
        while not is_so() and not self.lost and time.monotonic() < deadline_s:
            time.sleep(POLL_S / 2)

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
                stop.wait(POLL_S)
        except (RuntimeError, ValueError) as error:
            if not stop.is_set() and not self.is_controller:
                self.lost.setdefault(0, f"its store is gone ({type(error).__name__})")

    def _look_at_others(
        self, store: Store, seen: Counter[int], names: dict[int, int], beats: dict[int, bytes]
    ) -> None:
        now_s = time.monotonic()
        frozen_s = max(0.0, now_s - self._answered_s - 1.0)  # this machine was suspended
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
