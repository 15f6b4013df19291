"""Messages between the agents of several nodes, through torch's store.

The agent of node 0 gets the heartbeats of all others, how their ranks end, and the signals that
they receive. It alone knows what rank 0 has recorded, and sends back how a start of the ranks ends.
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

from rlcli.distributed.watchdog import own_line
from rlcli.launcher.job import Death, End, Job
from rlcli.run_dir.heartbeat import Unchanged

POLL_S = 0.1
LOOK_S = 1.0
"""Seconds of silence that one look counts at most."""
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
        self._outbox: deque[tuple[str, Any]] = deque()
        self._received: deque[tuple[str, Any]] = deque()
        self._silence: dict[int, Unchanged] = {}
        self._names: dict[int, int] = {}
        self._left: set[int] = set()
        self._answered_s = time.monotonic()
        self._stop = Event()
        self._thread: Thread | None = None

    def begin(self, store: Store, run_store: Store, *, rank: int, num: int) -> None:
        """Start to exchange messages with the nodes that met in `store`, as `rank` of `num`."""
        self.close()
        self.lost, self.end, self.num_waiting = {}, None, 0
        self._names, self._left, self._num_sent = {}, set(), 0
        self._rank, self.is_controller = rank, rank == 0
        self._answered_s = time.monotonic()
        self._silence = {other: Unchanged(LOOK_S) for other in range(1, num)}
        self._received.clear()
        self._outbox.clear()
        self.send("node", self._node)
        self._stop = Event()
        stores = own_line(store), own_line(run_store)
        self._thread = Thread(target=self._talk, args=(*stores, self._stop), daemon=True)
        self._thread.start()

    def send(self, kind: str, value: Any = None) -> None:
        """Send node 0 a message: a `death` of a rank, or a `signal` that this agent received."""
        self._outbox.append((f"message/{self._rank}/{self._num_sent}", [kind, value]))
        self._num_sent += 1

    def received(self) -> tuple[list[Death], list[int]]:
        """(deaths of ranks, signals) on the other nodes since the last call."""
        some = [self._received.popleft() for _ in range(len(self._received))]
        deaths = [Death(**value) for kind, value in some if kind == "death"]
        return deaths, [value for kind, value in some if kind == "signal"]

    def send_end(self, end: End) -> None:
        """Send all other nodes how this start of the ranks ends."""
        self._outbox.append(("end", asdict(end)))
        self._await(lambda: not self._outbox, FLUSH_LIMIT_S)

    def leave(self) -> None:
        """Leave the run. Node 0 waits for the other nodes, which need its store until then."""
        self.send("left")
        if self.is_controller:
            self._await(lambda: self._left >= self._silence.keys(), GOODBYE_LIMIT_S)
        else:
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
        num_read = Counter[int]()
        try:
            while not stop.is_set():
                while self._outbox:
                    key, value = self._outbox[0]
                    store.set(key, json.dumps(value))
                    self._outbox.popleft()
                store.add(f"beat/{self._rank}", 1)
                if self.is_controller:
                    self._look_at_others(store, num_read)
                elif self.end is None and store.check(["end"]):
                    self.end = End(**json.loads(store.get("end")))
                if self.run_path is None:
                    self.run_path = self._find_path(run_store)
                self.num_waiting = self.count_waiting()
                self._answered_s = time.monotonic()
                stop.wait(POLL_S)
        except (RuntimeError, ValueError) as error:
            if not stop.is_set() and not self.is_controller:
                self.lost.setdefault(0, f"its store is gone ({type(error).__name__})")

    def _look_at_others(self, store: Store, num_read: Counter[int]) -> None:
        for rank, silence in self._silence.items():
            while store.check([key := f"message/{rank}/{num_read[rank]}"]):
                num_read[rank] += 1
                kind, value = json.loads(store.get(key))
                if kind == "node":
                    self._names[rank] = value
                elif kind == "left":
                    self._left.add(rank)
                else:
                    self._received.append((kind, value))
            silence.look(store.add(f"beat/{rank}", 0))
            if silence.seconds > self._silence_s:
                why = f"no heartbeat from it for {self._silence_s:g} s"
                self.lost.setdefault(self._names.get(rank, rank), why)
