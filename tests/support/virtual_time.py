"""Coroutines under a clock that hardly moves while they work, and jumps over their waits."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
BEGIN_S = 1000.0
ROUND_S = 1e-8
"""Of a round of the loop: what begins later ends later."""


class _Jump(selectors.DefaultSelector):
    """Does not wait for time to go by, but lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = BEGIN_S

    def select(self, timeout: float | None = None) -> Any:
        self.now_s += ROUND_S
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("all wait for each other")
            self.now_s += max(0.0, timeout)
        return ready


def run_at_once(work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns, which may wait for time and for itself, but for nothing outside."""
    selector = _Jump()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now_s
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(work)
