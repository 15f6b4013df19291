"""What happened to the calls of a judge, counted until somebody asks."""

from __future__ import annotations

import threading
from collections import defaultdict

from rlcli.types import StepRecord


class Tally:
    """Counts and latencies. Added to from the judge's thread, drained from any other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: StepRecord = defaultdict(float)
        self._latencies_s: list[float] = []

    def add(self, name: str, amount: float = 1.0) -> None:
        """Count `amount` more of `name`."""
        with self._lock:
            self._counts[name] += amount

    def latency(self, seconds: float) -> None:
        """Note how long an answered call took."""
        with self._lock:
            self._latencies_s.append(seconds)

    def drain(self) -> StepRecord:
        """`judge/NAME` of all that was counted since the last call.

        `judge/p50_s`, `judge/p95_s`: seconds that half and that 95 % of the answered calls took at
        most. Absent where nothing was counted.
        """
        with self._lock:
            counts, self._counts = self._counts, defaultdict[str, float](float)
            latencies_s, self._latencies_s = sorted(self._latencies_s), []
        record = {f"judge/{name}": amount for name, amount in sorted(counts.items())}
        for percent in (50, 95) if latencies_s else ():
            rank = -(-percent * len(latencies_s) // 100)  # of the smallest that suffices, from 1
            record[f"judge/p{percent}_s"] = latencies_s[rank - 1]
        return record
