"""Coroutines of an environment, on one event loop that lives as long as the environment."""

from __future__ import annotations

import asyncio
import inspect
import threading
from contextlib import suppress
from typing import Any

from rlcli.envs.seeding import EpisodeRandom, use_in_thread

CLOSE_LIMIT_S = 5.0


class Coroutines:
    """An event loop in a thread of its own, started by the first coroutine.

    Sessions and tasks that one call opens are still usable in the next one.
    """

    def __init__(self, state: EpisodeRandom | None = None) -> None:
        self._state = state
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def finish(self, value: Any) -> Any:
        """The result of a coroutine; any other value as it is."""
        if not inspect.iscoroutine(value):
            return value
        return asyncio.run_coroutine_threadsafe(value, self._started()).result()

    def close(self) -> None:
        """Cancel what still runs and end the loop."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is None or thread is None:
            return
        with suppress(RuntimeError):  # the loop has ended by itself
            loop.call_soon_threadsafe(loop.stop)
        thread.join(CLOSE_LIMIT_S)

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._run, args=(self._loop,), daemon=True, name="coroutines"
                )
                self._thread.start()
            return self._loop

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        use_in_thread(self._state)
        try:
            loop.run_forever()
        finally:
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            loop.close()
