"""Rank 0's heartbeat for its agent: a file in the run directory that rank 0 touches."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from threading import Thread

SIGN = ".alive"
SIGN_EVERY_S = 5.0
LOOK_EVERY_S = 1.0


def start_heartbeat(run_dir: Path, *, every_s: float = SIGN_EVERY_S) -> None:
    """Touch the heartbeat file every `every_s` seconds while this process runs."""

    def beat() -> None:
        while True:
            with suppress(OSError):
                (run_dir / SIGN).touch()
            time.sleep(every_s)

    Thread(target=beat, daemon=True).start()


def clear_heartbeat(run_dir: Path) -> None:
    """Remove the heartbeat file after rank 0 has exited."""
    with suppress(OSError):
        (run_dir / SIGN).unlink(missing_ok=True)


class Silence:
    """Seconds since rank 0's last heartbeat; 0 before the first one of this start.

    Time is added per look, with a limit, so that time with the machine suspended does not count.
    """

    def __init__(self, run_dir: Path, *, look_every_s: float) -> None:
        self.seconds = 0.0
        self._path = run_dir / SIGN
        self._look_every_s = look_every_s
        self._last: int | None = None
        self._looked_s = time.monotonic()
        self._has_begun = False

    def look(self) -> None:
        """Check the file and add the elapsed time, if a look is due."""
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
