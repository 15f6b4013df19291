"""Calls users' reward functions with the arguments that their parameter names ask for.

Four forms are known: one response (verl), and lists of responses as in verl's batch manager, TRL
and OpenRLHF. Lists always hold one response, so that a failure affects no other response and no
score depends on timing.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import CodeType
from typing import Any

from rlcli.errors import RewardError
from rlcli.rewards.outcomes import NotANumber, only_item, shown

CONTRACT = "compute_score(data_source, solution_str, ground_truth, extra_info=None)"
RESPONSES = ("solution_str", "response", "completion")
"""Parameter names for a single response, by priority."""
LISTS = {"solution_strs": "verl", "completions": "TRL", "queries": "OpenRLHF"}
"""Parameter that identifies a form with lists, and the tool it comes from."""
SINGLE = ("data_source", "solution_str", "ground_truth", "extra_info")
TRL = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
OWN = frozenset(
    [*SINGLE, *(f"{name}s" for name in SINGLE), *TRL, "prompt", "messages", "queries", "labels"]
)
"""Parameter names that never mean a column of the data."""

_VAR = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True, slots=True, kw_only=True)
class UserFunction:
    """A user's function, adapted to take one response as keyword arguments.

    lists: the tool whose form with lists it has, or None. columns: parameters taken from columns of
    the row. file: where it is defined, if that is known.
    """

    call: Callable[..., Any]
    lists: str | None
    columns: tuple[str, ...]
    file: str | None


def adapt(function: Any, *, name: str, where: str) -> UserFunction:
    """Adapt a function. Raises: RewardError if it cannot be called or takes no response."""
    place = f"{where}:{_line(function)}"
    if inspect.isclass(function):
        try:
            function = function()
        except TypeError as error:
            raise RewardError(
                f"{place}: {name} is a class that cannot be made without arguments: {error}.\n"
                f"Name an object of it, or a function: {CONTRACT}."
            ) from error
    if not callable(function):
        raise RewardError(f"{where}: {name} is a {type(function).__name__}, expected a function.")
    try:
        signature = inspect.signature(function)
    except ValueError as error:
        raise RewardError(
            f"{where}: {name} has no signature to call it by.\nExpected {CONTRACT}."
        ) from error
    fixed = function.keywords if isinstance(function, functools.partial) else {}
    known = {key: value for key, value in signature.parameters.items() if key not in fixed}
    takes_any = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in known.values())
    lists = next((LISTS[key] for key in LISTS if key in known), None)
    response = next((key for key in RESPONSES if key in known), None)
    if lists is None and response is None and not takes_any:
        raise RewardError(
            f"{place}: {name}{signature} does not take the response.\nExpected {CONTRACT}."
        )
    wanted = {key: one for key, one in known.items() if one.kind not in _VAR}
    others = tuple(key for key in wanted if key not in OWN and key != response)
    caller = _Caller(function, name, wanted, takes_any, fixed, lists, response)
    return UserFunction(call=caller, lists=lists, columns=others, file=source_file(function))


@dataclass(frozen=True, slots=True)
class _Caller:
    """Calls `function` with the values of its parameters."""

    function: Any
    name: str
    wanted: Mapping[str, inspect.Parameter]
    takes_any: bool
    fixed: Collection[str]
    lists: str | None
    response: str | None

    def __call__(self, **call: Any) -> Any:
        metrics: dict[str, Any] = {}
        values = _lists(self.lists, call, metrics) if self.lists else _single(call, self.response)
        missing = [
            key
            for key, one in self.wanted.items()
            if key not in values and one.default is inspect.Parameter.empty
        ]
        if missing:
            columns = ", ".join(call["columns"]) or "none"
            raise RewardError(
                f"{self.name} asks for {', '.join(missing)}, and the row has no such column (it "
                f"has: {columns}). Expected {CONTRACT}, with other columns by their names"
            )
        positional = inspect.Parameter.POSITIONAL_ONLY
        first = [k for k, one in self.wanted.items() if one.kind is positional and k in values]
        names = values.keys() - self.fixed if self.takes_any else self.wanted.keys() & values.keys()
        outcome = self.function(
            *(values[key] for key in first), **{k: values[k] for k in names if k not in first}
        )
        if inspect.isawaitable(outcome):
            outcome = _loop().run_until_complete(_awaited(outcome))
        return _item(outcome, metrics) if self.lists else outcome


def _single(call: Mapping[str, Any], response: str | None) -> dict[str, Any]:
    """Arguments for a function that takes one response."""
    own = {name: call[name] for name in SINGLE}
    messages = call["messages"]
    values = {**call["columns"], **own, "prompt": _text(messages), "messages": messages}
    return values if response is None else {**values, response: call["solution_str"]}


def _lists(form: str, call: Mapping[str, Any], metrics: dict[str, Any]) -> dict[str, Any]:
    """Arguments for a function that takes lists: columns, and the names of its form.

    metrics: filled by `log_metric` of TRL.
    """
    text, messages, gold = call["solution_str"], call["messages"], call["ground_truth"]
    columns = {key: [value] for key, value in call["columns"].items()}
    if form == "verl":
        return {**columns, **{f"{name}s": [call[name]] for name in SINGLE}}
    if form == "OpenRLHF":
        prompt = _text(messages)
        return {**columns, "queries": [prompt + text], "prompts": [prompt], "labels": [gold]}
    raw = call["columns"].get("prompt", messages)
    is_chat = not isinstance(raw, str)
    return {
        **{name: [call[name]] for name in SINGLE if name != "solution_str"},
        **columns,
        "prompts": [messages if is_chat else raw],
        "completions": [[{"role": "assistant", "content": text}] if is_chat else text],
        "completion_ids": [call["token_ids"]],
        "trainer_state": None,
        "log_extra": lambda *_: None,
        "log_metric": metrics.__setitem__,
    }


def _item(outcome: Any, metrics: Mapping[str, Any]) -> Any:
    """The outcome of the only response in a list; logged metrics become parts."""
    if not isinstance(outcome, Mapping):
        item = only_item(outcome)
        if not metrics or isinstance(item, Mapping) or item is None:
            return item
        return {**metrics, "score": item}
    # OpenRLHF: {"rewards": tensor, "scores": tensor, "extra_logs": {name: tensor}}
    if "rewards" not in outcome:
        raise NotANumber(f"the reward returned {shown(outcome)}, expected a list, or 'rewards'")
    logs: Mapping[str, Any] = outcome.get("extra_logs") or {}
    return {
        **{key: only_item(value) for key, value in logs.items()},
        "score": only_item(outcome["rewards"]),
    }


def _text(messages: Any) -> str:
    """The contents of a prompt's messages as one text."""
    return "\n\n".join(str(message.get("content") or "") for message in messages)


async def _awaited(outcome: Any) -> Any:
    return await outcome


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """One event loop for all calls: async clients in the user's file stay bound to it."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    return loop


def source_file(function: Any) -> str | None:
    """The file, or the notebook cell, in which a Python function is defined."""
    code = _code(function)
    return None if code is None else code.co_filename


def _line(function: Any) -> int:
    code = _code(function)
    return 1 if code is None else code.co_firstlineno


def _code(function: Any) -> CodeType | None:
    if isinstance(function, functools.partial):
        function = function.func
    code = inspect.unwrap(function)
    if not inspect.isfunction(code) and not inspect.isclass(code):
        code = vars(type(code)).get("__call__")
    return code.__code__ if inspect.isfunction(code) else None
