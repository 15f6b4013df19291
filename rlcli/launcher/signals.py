"""Signals that an agent passes to rank 0 instead of obeying."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

from rlcli.system.signals import INTERRUPTED, STOPS


class Signals:
    """SIGTERM and SIGINT received inside `with`. handed_on: those sent to rank 0."""

    def __init__(self) -> None:
        self.handed_on: list[int] = []
        self._waiting: list[int] = []
        self._taken_s: list[float] = []
        self._before: dict[int, Any] = {}
        self._raises = False

    def __enter__(self) -> Self:
        for number in STOPS:
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *error: object) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Inside, SIGINT raises KeyboardInterrupt and SIGTERM raises SystemExit."""
        self._raises = True
        try:
            yield
        finally:
            self._raises = False

    def ignore(self) -> None:
        """Ignore both until this process ends: its exit code is decided."""
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)
        self._before.clear()

    def add(self, number: int) -> None:
        """Add a signal that another node received."""
        self._waiting.append(number)

    def take(self) -> list[int]:
        """Signals to send to rank 0 now."""
        taken, self._waiting = self._waiting, []
        self.handed_on += taken
        self._taken_s += [time.monotonic()] * len(taken)
        return taken

    @property
    def is_interrupt(self) -> bool:
        """Whether a Ctrl-C was sent to rank 0."""
        return signal.SIGINT in self.handed_on

    @property
    def exit_code(self) -> int:
        """Exit code, as a shell shows it, of a run stopped before it had anything to save."""
        return INTERRUPTED if self.is_interrupt else 128 + signal.SIGTERM

    @property
    def asked_s(self) -> float:
        """Seconds since the first was taken; 0 before."""
        return time.monotonic() - self._taken_s[0] if self._taken_s else 0.0

    @property
    def hurried_s(self) -> float:
        """Seconds since the second SIGINT was taken; 0 before."""
        pairs = zip(self.handed_on, self._taken_s, strict=True)
        at_s = [taken_s for number, taken_s in pairs if number == signal.SIGINT]
        return time.monotonic() - at_s[1] if len(at_s) > 1 else 0.0

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._raises and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._raises:
            raise SystemExit(128 + number)
        self._waiting.append(number)
