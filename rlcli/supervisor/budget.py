"""How often a run may be started again."""

from __future__ import annotations

from collections import deque


class Budget:
    """`most` times in any window_s seconds."""

    def __init__(self, most: int, *, window_s: float) -> None:
        self.most = most
        self.window_s = window_s
        self._taken_s: deque[float] = deque()

    def take(self, now_s: float) -> int | None:
        """How many are taken of this window with this one; None, and none taken, when it is
        spent."""
        while self._taken_s and now_s - self._taken_s[0] >= self.window_s:
            self._taken_s.popleft()
        if len(self._taken_s) >= self.most:
            return None
        self._taken_s.append(now_s)
        return len(self._taken_s)
