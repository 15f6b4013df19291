"""Reward functions that stay in the process that trains, because they cannot be sent to another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from rlcli.errors import RewardError
from rlcli.rewards.loading import reply_to
from rlcli.rewards.process import ScoringProcess
from rlcli.rewards.signatures import adapt

PREFIX = "this_process:"
_FUNCTIONS: dict[str, Callable[..., Any]] = {}


class RewardCaller(Protocol):
    """Calls one reward function with one response at a time."""

    form: dict[str, Any]

    def wait_until_ready(self) -> None: ...
    def call(self, arguments: Mapping[str, Any], /) -> dict[str, Any]: ...
    def stop(self) -> None: ...
    def close(self) -> None: ...


def keep_here(function: Callable[..., Any], name: str) -> str:
    """The `reward.fn` that names `function` in this process."""
    fn = f"{PREFIX}{name}"
    _FUNCTIONS[fn] = function
    return fn


def is_here(fn: str) -> bool:
    """Whether `reward.fn` names a function that was passed to the process that trains."""
    return fn.startswith(PREFIX)


def start_caller(
    fn: str, *, timeout_s: float, log: Path | None = None, allows_unsafe: bool = False
) -> RewardCaller:
    """The process that runs `reward.fn`, or the function itself if it is in this process.

    Raises: RewardError if the function should be here and is not.
    """
    if is_here(fn):
        return FunctionHere(fn)
    return ScoringProcess(fn, timeout_s=timeout_s, log=log, allows_unsafe=allows_unsafe)


class FunctionHere:
    """Calls a function of this process. Without a time limit: it cannot be ended."""

    def __init__(self, fn: str) -> None:
        name = fn.removeprefix(PREFIX)
        if fn not in _FUNCTIONS:
            raise RewardError(
                f"reward.fn={fn} is a function of the Python program that started the run.\n"
                f"Resume it there with rlcli.train(..., reward={name}), or put the function into a "
                "file: --reward FILE.py:FUNCTION."
            )
        self._function = adapt(_FUNCTIONS[fn], name=name, where=name)
        form = {"lists": self._function.lists, "columns": self._function.columns}
        self.form: dict[str, Any] = form

    def wait_until_ready(self) -> None:
        """Return at once."""

    def call(self, arguments: Mapping[str, Any], /) -> dict[str, Any]:
        """{"score", "parts"} of one call, or {"error"}."""
        function = self._function
        return reply_to(arguments, lambda data_source: function.call, file=function.file)

    def stop(self) -> None:
        """Nothing: a call that has begun goes on to its end."""

    def close(self) -> None:
        """Nothing is held."""
