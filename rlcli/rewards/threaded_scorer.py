"""What scorers with threads of their own share: a queue of rollouts, and its end."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress

from rlcli.rewards.base import StatelessScorer
from rlcli.types import Reward, Rollout

Job = tuple[Future[Reward], Rollout]


class ThreadedScorer(StatelessScorer):
    """A `Scorer` but for `can_recover`: threads take jobs from a queue until they get None."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._is_closed = False
        self._threads: list[threading.Thread] = []

    def _start(self, name: str, loops: Sequence[Callable[[], None]]) -> None:
        """One thread for each loop."""
        self._threads = [
            threading.Thread(target=loop, name=f"{name}-{i}", daemon=True)
            for i, loop in enumerate(loops)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, rollout: Rollout, *, before: Reward | None = None) -> Future[Reward]:
        """Begin to score one rollout; returns at once."""
        future: Future[Reward] = Future()
        with self._lock:  # what is put behind close() would never be answered
            if self._is_closed:
                raise RuntimeError("the scorer is closed")
            self._jobs.put((future, rollout))
        return future

    def close(self) -> None:
        """Cancel what waits, give up what is under way, and end the threads."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        with suppress(queue.Empty):
            while True:
                job = self._jobs.get_nowait()
                if job:
                    job[0].cancel()
        self._give_up()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _give_up(self) -> None:
        """End what is under way; its rollouts stay unscored."""
