"""An environment process: loads one environment and holds many episodes of it.

Runs as `python -m rlcli.envs.worker CONNECTION_FD PARENT_PID SPEC`, SPEC as JSON: target, args,
is_tools, threads. Requests and replies are JSON: {"id", "op", ...} and {"id", "result"} or
{"id", "error"}. Resets run one at a time, with `random` seeded; steps and tools run in threads.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import math
import os
import random
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import TextIOWrapper
from typing import Any

from rlcli.envs.loading import EnvLoadError, Loaded, accepted, last_line
from rlcli.rewards.parent_pipe import ParentGone, ParentPipe
from rlcli.system.hardware import be_killed_first, die_with_parent

FIELDS = ("messages", "reward", "done", "parts")
"""Of what step() returns."""


def main() -> None:
    """Serve until the parent is gone."""
    fd, parent_pid, spec = sys.argv[1:]
    del sys.argv[1:]
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # the process ends by a kill
    die_with_parent()
    if os.getppid() != int(parent_pid):
        os._exit(1)
    be_killed_first()
    pipe = ParentPipe(int(fd))
    with suppress(ParentGone):
        try:
            given = json.loads(spec)
            loaded = Loaded(given["target"], given["args"], is_tools=given["is_tools"])
        except EnvLoadError as error:
            pipe.send(json.dumps({"id": 0, "error": str(error)}).encode())
            return
        pipe.send(json.dumps({"id": 0, "result": None}).encode())
        _serve(pipe, Worker(loaded), threads=given["threads"])
    os._exit(0)  # threads may still run a tool


def _serve(pipe: ParentPipe, worker: Worker, *, threads: int) -> None:
    lock = threading.Lock()

    def answer(request: Mapping[str, Any]) -> None:
        number = request["id"]
        try:
            message = _to_json({"id": number, "result": worker.handle(request)})
        except EnvLoadError as error:
            message = _to_json({"id": number, "error": str(error)})
        except BaseException as error:  # an environment may raise anything, SystemExit too
            message = _to_json({"id": number, "error": last_line(error, worker.loaded.file)})
        with lock, suppress(ParentGone):
            pipe.send(message.encode())

    with ThreadPoolExecutor(threads) as pool:
        while True:
            pool.submit(answer, json.loads(pipe.receive()))


class Worker:
    """Episodes of one environment, by number."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.episodes: dict[int, Any] = {}
        self._lock = threading.Lock()

    def handle(self, request: Mapping[str, Any]) -> Any:
        """The result of one request."""
        operations: dict[str, Callable[..., Any]] = {
            "describe": self._describe,
            "tasks": self._tasks,
            "openings": self._openings,
            "reset": self._reset,
            "step": self._step,
            "call": self._call,
            "reward": self._reward,
            "close": self._close,
        }
        given = {key: value for key, value in request.items() if key not in ("id", "op")}
        return operations[request["op"]](**given)

    def _describe(self) -> dict[str, Any]:
        loaded = self.loaded
        num_tasks = len(loaded.create()) if loaded.has_tasks else None
        return {
            "form": loaded.form,
            "schemas": loaded.schemas(),
            "num_tasks": num_tasks,
            "scores": loaded.scores,
            "floor": loaded.floor,
        }

    def _tasks(self, numbers: Sequence[tuple[int, int]]) -> list[Any]:
        """Tasks by (index, seed)."""
        source = self.loaded.create()
        return [source.task(index, seed) for index, seed in numbers]

    def _openings(self, tasks: Sequence[tuple[Mapping[str, Any], int]]) -> list[Any]:
        """What reset returns for each (task, seed)."""
        out = []
        for task, seed in tasks:
            out.append(self._reset(-1, task, seed))
            self._close(-1)
        return out

    def _reset(self, episode: int, task: Mapping[str, Any], seed: int) -> list[dict[str, Any]]:
        if self.loaded.form == "functions":
            return []
        # libraries draw from the one `random` of the process
        with self._lock:
            random.seed(seed)
            if (numpy := sys.modules.get("numpy")) is not None:
                numpy.random.seed(seed % 2**32)
            environment = self.loaded.create()
            self.episodes[episode] = environment
            offered = dict(task) if self.loaded.form == "methods" else {}
            offered = {"task": dict(task), "seed": seed, **offered}
            if self.loaded.form == "methods":
                named = inspect.signature(environment.reset).parameters
                offered = {k: v for k, v in offered.items() if k in task or k in named}
            given = _finished(environment.reset(**accepted(environment.reset, offered)))
        is_pair = isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], Mapping)
        has_info = is_pair and "content" not in given[1]  # Gymnasium: observation, info
        return _messages(given[0] if has_info else given)

    def _step(self, episode: int, reply: Mapping[str, Any]) -> dict[str, Any]:
        return _read_step(_finished(self.episodes[episode].step(Reply(reply))))

    def _call(self, episode: int, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        owner = self.episodes[episode] if self.loaded.form == "methods" else None
        function = getattr(owner, name) if owner is not None else self.loaded.functions[name]
        try:
            content = _finished(function(**arguments))
            content = content if isinstance(content, str) else _to_json(content)
        except BaseException as error:  # goes back to the model
            return {"content": f"Error: {last_line(error, self.loaded.file)}", "failed": True}
        return {"content": content, "failed": False}

    def _reward(self, episode: int) -> float | None:
        value = _finished(self.episodes[episode].get_reward())
        return None if value is None else _finite(value)

    def _close(self, episode: int) -> None:
        environment = self.episodes.pop(episode, None)
        if callable(getattr(environment, "close", None)):
            _finished(environment.close())


class Reply:
    """What the model wrote in one turn, as step(reply) gets it: text and tool_calls."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.text: str = given["text"]
        self.tool_calls: list[dict[str, Any]] = given["tool_calls"]
        self.is_truncated: bool = given["is_truncated"]

    def __str__(self) -> str:
        return self.text


def _to_json(value: Any) -> str:
    """JSON text; numpy's numbers and arrays as numbers and lists, anything else unknown as text."""
    return json.dumps(value, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _finite(value: Any) -> float:
    """Raises: ValueError for a reward that is not finite."""
    score = float(value)
    if not math.isfinite(score):
        raise ValueError(f"a reward must be a finite number, got {score}")
    return score


def _finished(value: Any) -> Any:
    return asyncio.run(value) if inspect.iscoroutine(value) else value


def _messages(given: Any) -> list[dict[str, Any]]:
    """Text is a user's message. Raises: TypeError for anything that is not a conversation."""
    if given is None:
        return []
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if isinstance(given, Mapping):
        given = [given]
    out = []
    for message in given:
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
            raise TypeError(f"expected messages with role and content, got {message!r:.100}")
        out.append({"role": str(message.get("role", "user")), **message})
    return out


def _read_step(given: Any) -> dict[str, Any]:
    """What step() returned, in any of its forms, as messages, reward, done and parts."""
    if isinstance(given, tuple):  # Gymnasium: observation, reward, terminated[, truncated], info
        messages, reward, *ends = given
        flags = [bool(end) for end in ends if not isinstance(end, Mapping)]
        fields: dict[str, Any] = {"messages": messages, "reward": reward, "done": any(flags)}
    elif isinstance(given, Mapping):
        fields = dict(given)
    elif isinstance(given, str):
        fields = {"messages": given}
    else:
        fields = {name: getattr(given, name) for name in FIELDS if hasattr(given, name)}
        if not fields:
            raise TypeError(f"step returned {given!r:.100}, expected a dict with some of {FIELDS}")
    if unknown := set(fields) - set(FIELDS):
        raise TypeError(f"step returned {', '.join(sorted(unknown))}: not known")
    reward = fields.get("reward")
    parts = fields.get("parts") or {}
    return {
        "messages": _messages(fields.get("messages")),
        "reward": None if reward is None else _finite(reward),
        "done": bool(fields.get("done")),
        "parts": {str(name): _finite(value) for name, value in parts.items()},
    }


if __name__ == "__main__":
    main()
