"""From `reward.fn` to a function that can be called, with errors that name file and line.

Imported by the scoring processes, so it stays light.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import pickle
import sys
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

from rlcli.errors import RewardError
from rlcli.rewards.outcomes import NoOpinion, NotANumber, read_outcome
from rlcli.rewards.rules import RULES, RUNS_CODE, load_rule, rule_name
from rlcli.rewards.rules.undecided import InvalidReference, NoRule
from rlcli.rewards.sandbox import find_sandbox
from rlcli.rewards.signatures import UserFunction, adapt
from rlcli.rewards.user_file import UserFileError, last_line, load_file

Resolver = Callable[[str], Callable[..., Any]]
"""data_source to the function that scores its rows."""
PICKLED = ".pkl"
"""Ending of a file with a pickled function, written by `rlcli.train`."""


def is_rule(fn: str) -> bool:
    """Whether `reward.fn` names built-in rules rather than a user's function."""
    return fn == "rules" or fn in RULES


def load_rules(fn: str, *, timeout_s: float, allows_unsafe: bool = False) -> Resolver:
    """Resolver to built-in rules: the rule `fn`, or under `rules` that of the data source.

    timeout_s, allows_unsafe: for rules that run the model's code. The sandbox is looked for when
    such a rule scores its first row.
    """
    find = cache(partial(find_sandbox, allows_unsafe=allows_unsafe))

    def resolve(data_source: str) -> Callable[..., Any]:
        name = rule_name(data_source) if fn == "rules" else fn
        rule = load_rule(name)
        if name not in RUNS_CODE:
            return rule.compute_score
        limit_s = rule.SHARE_OF_TIME * timeout_s
        return partial(rule.compute_score, sandbox=find(), limit_s=limit_s)

    return resolve


def split_target(fn: str) -> tuple[str, str]:
    """(file or module, function) of `file.py:function`; the function may be left out.

    Raises:
        RewardError: it is neither that nor the name of a rule.
    """
    if fn.endswith(PICKLED):
        return fn, Path(fn).stem.rpartition("-")[0]
    place, colon, name = fn.rpartition(":")
    if not colon and name.endswith(".py"):
        return name, "compute_score"
    if not place or not name:
        close = difflib.get_close_matches(fn, ["rules", *RULES], n=2)
        hint = f" (nearest: {', '.join(close)})" if close else ""
        raise RewardError(
            f"reward.fn={fn} is no rule{hint}.\n"
            f"Expected rules, one of {', '.join(RULES)}, or file.py:function."
        )
    return place, name


def find_file(fn: str) -> Path | None:
    """The file that `reward.fn` names; None when it names a module.

    Raises:
        RewardError: there is no such file.
    """
    place, _ = split_target(fn)
    if not place.endswith((".py", PICKLED)) and "/" not in place:
        return None
    path = Path(os.path.expanduser(place)).absolute()
    if path.is_file():
        return path
    inside = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, inside, n=3)
    hint = f" (in that folder: {', '.join(close)})" if close else ""
    raise RewardError(f"reward.fn={fn}: there is no file {path}{hint}.")


def reply_to(
    call: Mapping[str, Any],
    resolve: Resolver,
    *,
    file: str | None,
    on_begin: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """{"score", "parts"} of one call, or {"error"}; with {"undecided": True}, not the last word.

    file: whose line an error names. on_begin: called when the function is about to be called.
    """
    try:
        function = resolve(call["data_source"])
        on_begin()
        return read_outcome(function(**call))
    except (NoOpinion, NoRule, InvalidReference) as error:
        return {"error": str(error), "undecided": True}
    except (NotANumber, RewardError) as error:
        return {"error": str(error)}
    except BaseException as error:  # the sandbox boundary: SystemExit too must not end the process
        return {"error": last_line(error, inside=file)}


def load_function(fn: str) -> UserFunction:
    """The user's function that `reward.fn` names.

    Raises:
        RewardError: there is no such function, or it cannot be loaded or called.
    """
    path = find_file(fn)
    place, name = split_target(fn)
    if path and path.suffix == PICKLED:
        return adapt(_unpickled(path), name=name, where=str(path))
    module = _load_module(path) if path else _import_module(fn, place)
    where = str(path or place)
    function = vars(module).get(name)
    if function is None:
        known = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise RewardError(
            f"{where}: there is no function {name}; it has: {', '.join(known) or 'none'}."
        )
    return adapt(function, name=name, where=where)


def _unpickled(path: Path) -> Any:
    try:
        return pickle.loads(path.read_bytes())
    except BaseException as error:  # as a user's file may
        raise RewardError(f"{path}: cannot be loaded: {last_line(error)}") from error


def _load_module(path: Path) -> ModuleType:
    try:
        return load_file(path, kind="reward_function")
    except UserFileError as error:
        raise RewardError(str(error)) from error


def _import_module(fn: str, place: str) -> ModuleType:
    sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(place)
    except BaseException as error:  # as a user's file may
        raise RewardError(f"reward.fn={fn}: cannot import {place}: {last_line(error)}") from error
