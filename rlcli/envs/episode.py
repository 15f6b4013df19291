"""One episode in an environment process: begun, stepped, and replayed once if its process fails."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from rlcli.envs.calls import ToolCall
from rlcli.envs.process import (
    EnvClosedError,
    EnvError,
    EnvLostError,
    EnvPool,
    EnvProcess,
    EnvTimeoutError,
)
from rlcli.errors import ConfigError
from rlcli.types import Message

MAX_COLLATERAL_LOSSES = 20
"""Times an episode begins anew because another one brought its process down."""


class EpisodeFailedError(Exception):
    """The environment failed twice: the episode has no reward."""


class _TimedOutTwice(EpisodeFailedError):
    """The second failure was a request without an answer."""


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
        self._has_failed = self._has_lost = self._is_apart = False
        self._collateral_losses = 0
        self.seconds = 0.0
        """Time that requests took."""

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
        """The results of tools, in order. A tool that gives none in time is an error for the model.

        The next request goes to a new process, in which that call has not been made.
        """
        messages: list[Message] = []
        errors = 0
        for call in calls:
            try:
                found = self._ask("call", name=call.name, arguments=dict(call.arguments))
            except _TimedOutTwice:
                limit_s = self._pool.spec.timeout_s
                found = {"content": f"Error: no answer within {limit_s:g} s", "failed": True}
            errors += found["failed"]
            messages.append({"role": "tool", "name": call.name, "content": found["content"]})
        return EnvReply(messages=messages, tool_errors=errors)

    def reward(self) -> float | None:
        """What get_reward() gives."""
        return self._ask("reward")

    def close(self) -> None:
        """Have the process forget the episode."""
        process, self._process = self._process, None
        if process is None:
            return
        if self._form != "functions" and not process.is_down:
            with suppress(EnvError, EnvLostError, EnvTimeoutError):  # nothing depends on it
                process.request("close", self._pool.spec.timeout_s, episode=self._number)
        self._pool.release(process)

    def _ask(self, op: str, **given: Any) -> Any:
        """The result of a request, asked again once after a failure."""
        while True:
            is_ready = False
            try:
                process = self._ready()
                is_ready = True
                result = self._request(process, op, given)
            except EnvClosedError as error:
                raise EpisodeFailedError(str(error)) from error
            except EnvError as error:
                self._count_failure(error)
            except EnvTimeoutError as error:
                kind = _TimedOutTwice if is_ready else EpisodeFailedError
                self._is_apart = True
                self._count_failure(error, kind=kind)
            except EnvLostError as error:
                is_collateral = self._is_collateral(error)
                self._is_apart = self._is_apart or not is_collateral
                self._count_failure(error, is_collateral=is_collateral)
            else:
                self._done.append(_Done(op, given, result))
                return result

    def _is_collateral(self, error: EnvLostError) -> bool:
        """Whether another episode ended the process; the first time also if one may have."""
        is_first, self._has_lost = not self._has_lost, True
        may_be = error.is_collateral or (is_first and not error.is_alone)
        self._collateral_losses += may_be
        return may_be and self._collateral_losses <= MAX_COLLATERAL_LOSSES

    def _count_failure(
        self,
        error: Exception,
        *,
        is_collateral: bool = False,
        kind: type[EpisodeFailedError] = EpisodeFailedError,
    ) -> None:
        """Raises: `kind` the second time."""
        self.close()
        if is_collateral:
            return
        if self._has_failed:
            raise kind(f"the environment failed twice: {error}") from error
        self._has_failed = True

    def _ready(self) -> EnvProcess:
        """A live process in which this episode stands where it stood."""
        process = self._process
        if process is not None and not process.is_down:
            return process
        if process is not None:
            self._pool.release(process)
        # one that hung or ended its process must not take the episodes of others down with it
        try:
            process = self._pool.private() if self._is_apart else self._pool.shared(self._number)
        except ConfigError as error:  # it loaded before, so something else ended its replacement
            raise EnvLostError(str(error), is_collateral=False) from error
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
        with process.room(op):
            started = time.perf_counter()
            try:
                return process.request(op, min(spec.timeout_s, left_s), **call)
            finally:
                self.seconds += time.perf_counter() - started


def describe(pool: EnvPool) -> EnvFacts:
    """What the pool's environment is. Raises: EnvError with the cure."""
    found = pool.shared(0).request("describe", 120.0)
    return EnvFacts(**found)
