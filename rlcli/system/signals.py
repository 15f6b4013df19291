"""Stop a run by signal: SIGTERM and Ctrl-C after the step, a second Ctrl-C immediately."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

INTERRUPTED = 130
BY_CTRL_C = "Ctrl-C"
STOPS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """The first signal that asked the run to stop, if any.

    acknowledged_by: shows a text to the user; if it returns False, the text goes to stderr.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.acknowledged_by: Callable[[str], bool] = lambda text: False

    def install(self) -> None:
        """Install the signal handlers."""
        for number in STOPS:
            signal.signal(number, self._on_signal)

    def ignore(self) -> None:
        """Ignore signals until this process exits; its exit code is already set."""
        for number in STOPS:
            signal.signal(number, signal.SIG_IGN)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            self._leave()
        self.signal = number
        text = stopping_text(number)
        if not self.acknowledged_by(text):
            # no print: the handler may interrupt another write to the same stream
            os.write(2, f"\n{text}\n".encode())

    def _leave(self) -> None:
        # files are replaced atomically, so exiting in between damages none
        os._exit(INTERRUPTED)


class BorrowedStop(StopRequest):
    """For a run inside a program that goes on afterwards: its handlers are put back.

    Python allows handlers in the main thread only. In another thread, set `signal` to stop the run.
    """

    def __init__(self) -> None:
        super().__init__()
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Listen from now on, if this is the main thread."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in STOPS}
            super().install()

    def ignore(self) -> None:
        """Put the program's own handlers back."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _leave(self) -> None:
        raise KeyboardInterrupt


def stopping_text(number: int) -> str:
    """The message that acknowledges the signal `number`."""
    if number == signal.SIGINT:
        return (
            "Ctrl-C: stopping after this step, with a checkpoint. Press it again to stop at once."
        )
    name = signal.Signals(number).name
    return f"{name}: stopping after this step, with a checkpoint."
