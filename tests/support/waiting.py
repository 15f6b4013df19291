"""Tests that wait for what another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def wait_until(is_so: Callable[[], Any], limit_s: float = 60.0) -> float:
    """Seconds until it is so. limit_s: far from what any machine needs; then it is not so."""
    begin_s = time.monotonic()
    while not is_so():
        waited_s = time.monotonic() - begin_s
        assert waited_s < limit_s, f"not so after {waited_s:.0f} s"
        time.sleep(0.01)
    return time.monotonic() - begin_s
