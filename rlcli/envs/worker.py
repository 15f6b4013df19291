"""An environment process: loads one environment and holds many episodes of it.

Runs as `python -m rlcli.envs.worker CONNECTION_FD PARENT_PID SPEC`, SPEC as JSON: target, args,
is_tools, threads, timeout_s. Requests and replies are JSON: {"id", "op", ...} and {"id", "result"}
or {"id", "error"}. Requests are handled in threads; `random` has one state for each episode.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from io import TextIOWrapper
from typing import Any

from rlcli.envs import seeding
from rlcli.envs.coroutines import Coroutines
from rlcli.envs.loading import Loaded, accepted
from rlcli.envs.replies import Reply, finite, read_messages, read_step, to_json
from rlcli.envs.seeding import EpisodeRandom, drawing_from
from rlcli.envs.sources import EnvLoadError
from rlcli.rewards.parent_pipe import ParentGone, ParentPipe
from rlcli.rewards.user_file import last_line
from rlcli.system.hardware import be_killed_first, die_with_parent

GARBAGE = ("banana", "<answer>banana</answer>", "I do not know.")
"""Replies that answer no task."""


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
    _keep_from_children(int(fd))
    pipe = ParentPipe(int(fd))
    seeding.install()
    with suppress(ParentGone):
        try:
            given = json.loads(spec)
            threads = given.pop("threads")
            loaded = Loaded(given.pop("target"), given.pop("args"), **given)
        except EnvLoadError as error:
            pipe.send(json.dumps({"id": 0, "error": str(error)}).encode())
            return
        pipe.send(json.dumps({"id": 0, "result": None}).encode())
        _serve(pipe, Worker(loaded), threads=threads)
    os._exit(0)  # threads may still run a tool


def _keep_from_children(fd: int) -> None:
    """A process that a tool leaves behind must not hold the pipe: the parent waits for its end."""
    os.set_inheritable(fd, False)

    def close() -> None:
        with suppress(OSError):
            os.close(fd)

    os.register_at_fork(after_in_child=close)


def _serve(pipe: ParentPipe, worker: Worker, *, threads: int) -> None:
    lock = threading.Lock()

    def answer(request: Mapping[str, Any]) -> None:
        number = request["id"]
        try:
            message = _encode({"id": number, "result": worker.handle(request)})
        except EnvLoadError as error:
            message = _encode({"id": number, "error": str(error)})
        except BaseException as error:  # an environment may raise anything, SystemExit too
            message = _encode({"id": number, "error": worker.describe_error(error)})
        with lock, suppress(ParentGone):
            pipe.send(message)

    with ThreadPoolExecutor(threads) as pool:
        while True:
            pool.submit(answer, json.loads(pipe.receive()))


def _encode(message: Mapping[str, Any]) -> bytes:
    """JSON; half a surrogate pair, which a reply of the model or a tool may have, becomes `?`."""
    return to_json(message).encode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class _Held:
    """A live episode: its environment, generators and event loop."""

    environment: Any
    random: EpisodeRandom
    coroutines: Coroutines


class Worker:
    """Episodes of one environment, by number."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.episodes: dict[int, _Held] = {}
        self._shared = Coroutines()

    def handle(self, request: Mapping[str, Any]) -> Any:
        """The result of one request."""
        operations: dict[str, Callable[..., Any]] = {
            "describe": self._describe,
            "tasks": self._tasks,
            "opening": self._opening,
            "answers": self._answers,
            "reset": self._reset,
            "step": self._step,
            "call": self._call,
            "reward": self._reward,
            "close": self._close,
        }
        given = {key: value for key, value in request.items() if key not in ("id", "op")}
        return operations[request["op"]](**given)

    def describe_error(self, error: BaseException) -> str:
        """The last line of a traceback, and the line of the user's file."""
        file = self.loaded.file
        return last_line(error, inside=str(file) if file else None)

    def _describe(self) -> dict[str, Any]:
        loaded = self.loaded
        return {
            "form": loaded.form,
            "schemas": loaded.schemas(),
            "has_tasks": loaded.has_tasks,
            "num_tasks": len(loaded.create()) if loaded.has_end else None,
            "scores": loaded.scores,
            "floor": loaded.floor,
            "knows_answers": loaded.knows_answers,
        }

    def _tasks(self, numbers: Sequence[tuple[int, int]]) -> list[Any]:
        """Tasks by (index, seed)."""
        source = self.loaded.create()
        out = []
        for index, seed in numbers:
            with drawing_from(EpisodeRandom(seed + index)):
                out.append(self._shared.finish(source.task(index, seed)))
        return out

    def _opening(self, episode: int, task: Mapping[str, Any], seed: int) -> list[dict[str, Any]]:
        """What reset returns."""
        try:
            return self._reset(episode, task, seed)
        finally:
            self._close(episode)

    def _answers(self, episode: int, task: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """Rewards of the right reply to a task, None where there is none, and of wrong ones."""
        environment = self.loaded.create()
        right = self._shared.finish(environment.answer(dict(task)))
        if right is None:
            return {"right": None, "wrong": []}
        replies = [str(right), *GARBAGE]
        first, *others = [self._reward_of(episode, task, seed, text) for text in replies]
        return {"right": first, "wrong": others}

    def _reward_of(self, episode: int, task: Mapping[str, Any], seed: int, text: str) -> float:
        """Reward of the first step with a reply."""
        reply = {"text": text, "tool_calls": [], "is_truncated": False}
        try:
            self._reset(episode, task, seed)
            reward = self._step(episode, reply)["reward"]
        finally:
            self._close(episode)
        return self.loaded.floor if reward is None else reward

    def _reset(self, episode: int, task: Mapping[str, Any], seed: int) -> list[dict[str, Any]]:
        if self.loaded.form == "functions":
            return []
        state = EpisodeRandom(seed)
        with drawing_from(state):
            held = _Held(self.loaded.create(), state, Coroutines(state))
            self.episodes[episode] = held
            reset = held.environment.reset
            offered = dict(task) if self.loaded.form == "methods" else {}
            offered = {"task": dict(task), "seed": seed, **offered}
            if self.loaded.form == "methods":
                named = inspect.signature(reset).parameters
                offered = {k: v for k, v in offered.items() if k in task or k in named}
            given = held.coroutines.finish(reset(**accepted(reset, offered)))
        is_pair = isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], Mapping)
        has_info = is_pair and "content" not in given[1]  # Gymnasium: observation, info
        return read_messages(given[0] if has_info else given)

    def _step(self, episode: int, reply: Mapping[str, Any]) -> dict[str, Any]:
        held = self.episodes[episode]
        with drawing_from(held.random):
            return read_step(held.coroutines.finish(held.environment.step(Reply(reply))))

    def _call(self, episode: int, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        held = self.episodes[episode] if self.loaded.form == "methods" else None
        function = getattr(held.environment, name) if held else self.loaded.functions[name]
        coroutines = held.coroutines if held else self._shared
        try:
            with drawing_from(held.random if held else None):
                content = coroutines.finish(function(**arguments))
            content = content if isinstance(content, str) else to_json(content)
        except BaseException as error:  # goes back to the model
            return {"content": f"Error: {self.describe_error(error)}", "failed": True}
        return {"content": content, "failed": False}

    def _reward(self, episode: int) -> float | None:
        held = self.episodes[episode]
        with drawing_from(held.random):
            value = held.coroutines.finish(held.environment.get_reward())
        return None if value is None else finite(value)

    def _close(self, episode: int) -> None:
        held = self.episodes.pop(episode, None)
        if held is None:
            return
        try:
            if callable(getattr(held.environment, "close", None)):
                with drawing_from(held.random):
                    held.coroutines.finish(held.environment.close())
        finally:
            held.coroutines.close()


if __name__ == "__main__":
    main()
