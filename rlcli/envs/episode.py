"""One episode in an environment process: begun, stepped, and replayed once if its process fails."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from rlcli.envs.calls import ToolCall
from rlcli.envs.process import EnvError, EnvLostError, EnvPool, EnvProcess, EnvTimeoutError
from rlcli.errors import ConfigError
from rlcli.types import Message

MAX_INNOCENT_LOSSES = 20
"""Times an episode begins anew because another one brought its process down."""


class EpisodeFailedError(Exception):
    """The environment failed twice: the episode has no reward."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvFacts:
    """What an environment is, as its process describes it.

    form: functions, steps or methods. schemas: of its tools. has_tasks: whether it makes tasks.
    num_tasks: of its own; None: without end. scores: whether it gives the reward. floor: reward of
    an episode without any. knows_answers: whether it has the right replies to tasks.
    """

    form: str
    schemas: Sequence[Mapping[str, Any]]
    has_tasks: bool
    num_tasks: int | None
    scores: bool
    floor: float
    knows_answers: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvReply:
    """What an environment answered to one turn."""

    messages: Sequence[Message] = ()
    reward: float | None = None
    is_done: bool = False
    parts: Mapping[str, float] = field(default_factory=dict[str, float])
    tool_errors: int = 0


@dataclass(frozen=True, slots=True)
class _Done:
    """A request that has been answered, to be asked again in a new process."""

    op: str
    given: Mapping[str, Any]
    result: Any


class Episode:
    """An episode of one task. Methods are called one at a time, from any thread.

    number: no other live episode of the pool has it. Raises: EpisodeFailedError.
    """

    def __init__(
        self, pool: EnvPool, number: int, task: Mapping[str, Any], *, seed: int, form: str
    ) -> None:
        self._pool, self._number, self._form = pool, number, form
        self._task, self._seed = dict(task), seed
        self._done: list[_Done] = []
        self._process: EnvProcess | None = None
        self._has_failed = self._has_lost = False
        self._innocent_losses = 0
        self.seconds = 0.0

    def begin(self) -> Sequence[Message]:
        """The environment's first messages."""
        return self._ask("reset", task=self._task, seed=self._seed)

    def step(self, text: str, calls: Sequence[ToolCall], *, is_truncated: bool) -> EnvReply:
        """The answer of an environment with step(reply)."""
        reply = {
            "text": text,
            "tool_calls": [{"name": call.name, "arguments": call.arguments} for call in calls],
            "is_truncated": is_truncated,
        }
        found = self._ask("step", reply=reply)
        return EnvReply(
            messages=tuple(found["messages"]),
            reward=found["reward"],
            is_done=found["done"],
            parts=found["parts"],
        )

    def call(self, calls: Sequence[ToolCall]) -> EnvReply:
        """The results of tools, in order."""
        messages: list[Message] = []
        errors = 0
        for call in calls:
            found = self._ask("call", name=call.name, arguments=dict(call.arguments))
            errors += found["failed"]
            messages.append({"role": "tool", "name": call.name, "content": found["content"]})
        return EnvReply(messages=messages, tool_errors=errors)

    def reward(self) -> float | None:
        """What get_reward() gives."""
        return self._ask("reward")

    def close(self) -> None:
        """Forget the episode."""
        if self._process is None:
            return
        if self._form != "functions" and not self._process.is_down:
            with suppress(EnvError, EnvLostError, EnvTimeoutError):  # it has its reward
                self._process.request("close", self._pool.spec.timeout_s, episode=self._number)
        self._pool.release(self._process)
        self._process = None

    def _ask(self, op: str, **given: Any) -> Any:
        """The result of a request, asked again once in a process of its own."""
        started = time.perf_counter()
        try:
            while True:
                try:
                    result = self._request(self._ready(), op, given)
                except EnvLostError as error:
                    self._count_failure(error, is_innocent=self._is_innocent(error))
                except (EnvError, EnvTimeoutError) as error:
                    self._count_failure(error, is_innocent=False)
                else:
                    self._done.append(_Done(op, given, result))
                    return result
        finally:
            self.seconds += time.perf_counter() - started

    def _is_innocent(self, error: EnvLostError) -> bool:
        """Whether another episode ended the process; the first time also if one may have."""
        is_first, self._has_lost = not self._has_lost, True
        return error.is_innocent or (is_first and not error.is_alone)

    def _count_failure(self, error: Exception, *, is_innocent: bool) -> None:
        """Raises: EpisodeFailedError the second time, or once others fail too often."""
        if is_innocent and self._innocent_losses < MAX_INNOCENT_LOSSES:
            self._innocent_losses += 1
        elif self._has_failed:
            raise EpisodeFailedError(f"the environment failed twice: {error}") from error
        else:
            self._has_failed = True
        if self._process is not None:
            self._pool.release(self._process)
        self._process = None

    def _ready(self) -> EnvProcess:
        """A live process in which this episode stands where it stood."""
        process = self._process
        if process is not None and not process.is_down:
            return process
        if process is not None:
            self._pool.release(process)
        # an environment that failed once must not take the episodes of others down with it
        try:
            process = self._pool.private() if self._has_failed else self._pool.shared(self._number)
        except ConfigError as error:  # it loaded before, so something else ended its replacement
            raise EnvLostError(str(error), is_innocent=False) from error
        self._process = process
        if self._form != "functions":
            self._replay(process)
        return process

    def _replay(self, process: EnvProcess) -> None:
        """Ask a new process what the old one has answered. Raises: EpisodeFailedError."""
        for done in self._done:
            if self._request(process, done.op, done.given) != done.result:
                self.close()
                raise EpisodeFailedError(
                    f"the environment answered {done.op} differently after its process was "
                    "replaced: its answers must depend on the seed alone"
                )

    def _request(self, process: EnvProcess, op: str, given: Mapping[str, Any]) -> Any:
        spec = self._pool.spec
        left_s = spec.episode_timeout_s - self.seconds
        if left_s <= 0:
            raise EpisodeFailedError(
                f"the environment took longer than {spec.episode_timeout_s:g} s in all "
                "(env.episode_timeout_s)"
            )
        call: dict[str, Any] = {"episode": self._number, **given}
        return process.request(op, min(spec.timeout_s, left_s), **call)


def describe(pool: EnvPool) -> EnvFacts:
    """What the pool's environment is. Raises: EnvError with the cure."""
    found = pool.shared(0).request("describe", 120.0)
    return EnvFacts(**found)
