"""A real OpenEnv server on loopback: guess the digit that the first message shows."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from openenv.core.env_server.http_server import create_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, Observation, State


class Guess(Action):
    value: int


class Told(Observation):
    text: str = ""


class GuessEnvironment(Environment[Guess, Told, State]):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        super().__init__()
        self._state, self._goal = State(), 0

    def reset(self, seed: Any = None, episode_id: Any = None, **kwargs: Any) -> Told:
        self._goal = random.Random(seed).randrange(10)
        return Told(text=f"{self._goal}+0=", done=False, reward=None)

    def step(self, action: Guess, timeout_s: Any = None, **kwargs: Any) -> Told:
        good = action.value == self._goal
        return Told(text="right" if good else "3+4=", done=good, reward=float(good))

    @property
    def state(self) -> State:
        return self._state


@contextmanager
def serving() -> Iterator[str]:
    """The URL of a server that runs meanwhile."""
    listener = socket.create_server(("127.0.0.1", 0))
    app = create_app(GuessEnvironment, Guess, Told, env_name="guess", max_concurrent_envs=64)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
