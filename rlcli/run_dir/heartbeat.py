"""Rank 0's sign of life for its agent: a file in the run directory that it touches."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from threading import Thread

SIGN = ".alive"
SIGN_EVERY_S = 5.0
LOOK_EVERY_S = 1.0


def start_heartbeat(run_dir: Path, *, every_s: float = SIGN_EVERY_S) -> None:
    """Give them from now on, for as long as this process runs."""

    def give() -> None:
        while True:
            with suppress(OSError):
                (run_dir / SIGN).touch()
            time.sleep(every_s)

    Thread(target=give, daemon=True).start()


def clear_heartbeat(run_dir: Path) -> None:
    """Take the file away, once rank 0 is gone."""
    with suppress(OSError):
        (run_dir / SIGN).unlink(missing_ok=True)


class Silence:
    """How long rank 0 has given no sign since its first one of this start; 0 before that.

    Time is counted in looks, so that time in which the machine was suspended does not count.
    """

    def __init__(self, run_dir: Path, *, look_every_s: float) -> None:
        self.seconds = 0.0
        self._path = run_dir / SIGN
        self._look_every_s = look_every_s
        self._last: int | None = None
        self._looked_s = time.monotonic()
        self._has_begun = False

    def look(self) -> None:
        """Count on, if it is time to look."""
        passed_s = time.monotonic() - self._looked_s
        if passed_s < self._look_every_s:
            return
        self._looked_s += passed_s
        touched = self._touched()
        if touched not in (None, self._last):
            self._last, self._has_begun, self.seconds = touched, True, 0.0
        elif self._has_begun:
            self.seconds += min(passed_s, 2 * self._look_every_s)

    def _touched(self) -> int | None:
        try:
            return self._path.stat().st_mtime_ns
        except OSError:
            return None
