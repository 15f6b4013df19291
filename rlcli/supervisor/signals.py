"""Signals that a supervisor hands on instead of obeying."""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import Any, Self


class Signals:
    """SIGTERM and SIGINT since `with` was entered. handed_on: those that rank 0 was sent."""

    def __init__(self) -> None:
        self.handed_on: list[int] = []
        self._waiting: list[int] = []
        self._second_s: float | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *error: object) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def add(self, number: int) -> None:
        """One that came to this process, or to another node."""
        self._waiting.append(number)

    def take(self) -> list[int]:
        """Those to hand on now."""
        taken, self._waiting = self._waiting, []
        self.handed_on += taken
        if self._second_s is None and self.handed_on.count(signal.SIGINT) > 1:
            self._second_s = time.monotonic()
        return taken

    @property
    def hurried_s(self) -> float:
        """Seconds since the second SIGINT; 0 before."""
        return 0.0 if self._second_s is None else time.monotonic() - self._second_s

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._waiting.append(number)
