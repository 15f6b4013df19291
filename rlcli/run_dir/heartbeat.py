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


class Unchanged:
    """How long a value, such as a sender's number of heartbeats, has not changed.

    Time is counted in looks, most_s at most for each, so that time in which this process was
    suspended does not count.
    """

    def __init__(self, most_s: float) -> None:
        self.seconds = 0.0
        self._most_s = most_s
        self._last: object = None
        self._looked_s = time.monotonic()

    def look(self, value: object) -> None:
        """Count the time since the last look, or begin anew if the value is another one.

        None: it cannot be read. Nothing is counted before the first value.
        """
        now_s = time.monotonic()
        if value not in (None, self._last):
            self._last, self.seconds = value, 0.0
        elif self._last is not None:
            self.seconds += min(now_s - self._looked_s, self._most_s)
        self._looked_s = now_s


class Silence:
    """How long rank 0 has given no sign since its first one of this start; 0 before that."""

    def __init__(self, run_dir: Path, *, look_every_s: float) -> None:
        self._path = run_dir / SIGN
        self._look_every_s = look_every_s
        self._looked_s = time.monotonic()
        self._sign = Unchanged(2 * look_every_s)

    @property
    def seconds(self) -> float:
        """Seconds since the last sign."""
        return self._sign.seconds

    def look(self) -> None:
        """Check the file, if a look is due."""
        if (now_s := time.monotonic()) - self._looked_s >= self._look_every_s:
            self._looked_s = now_s
            self._sign.look(self._touched())

    def _touched(self) -> int | None:
        try:
            return self._path.stat().st_mtime_ns
        except OSError:
            return None
