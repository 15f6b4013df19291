"""From a target to an environment: plain functions, a reset/step class, or TRL's form.

A target is a user's file, or an environment of another library. Imported by the environment
process, which may run in another Python, so it needs the standard library alone.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from rlcli.envs.sources import SOURCES, EnvLoadError, load_source, nearest, split_source
from rlcli.rewards.user_file import UserFileError, load_file

Form = Literal["functions", "steps", "methods"]
"""functions: a file of tools. steps: a class with reset and step. methods: TRL's form, a class with
reset whose other public methods are tools."""
ASSETS = Path(__file__).resolve().parent.parent / "assets"
BUILTIN = "builtin:"
PYTHON_TOOL = "python"
"""Target of the built-in tool that runs code in the sandbox."""
PRIVATE = "_"


def find_file(target: str) -> tuple[Path, str]:
    """(file, class or "") of `FILE.py`, `FILE.py:Class` or `builtin:NAME`. Raises: EnvLoadError."""
    if target.startswith(BUILTIN):
        name = target.removeprefix(BUILTIN)
        file = ASSETS / name / "tools.py"
        if not file.is_file():
            known = sorted(path.parent.name for path in ASSETS.glob("*/tools.py"))
            raise EnvLoadError(f"there is no {target}. Built in: {', '.join(known)}.")
        return file, ""
    place, colon, name = target.rpartition(":")
    if not colon:
        place, name = target, ""
    if not place.endswith(".py"):
        raise EnvLoadError(_unknown(target))
    path = Path(os.path.expanduser(place)).absolute()
    if not path.is_file():
        raise EnvLoadError(f"there is no file {path}.")
    return path, name


def absolute_target(target: str) -> str:
    """A target whose file is absolute; any other target as it is."""
    if target.startswith(BUILTIN) or split_source(target) is not None:
        return target
    place, colon, name = target.rpartition(":")
    if not colon:
        place, name = target, ""
    if not place.endswith(".py"):
        return target
    return f"{Path(os.path.expanduser(place)).absolute()}{colon}{name}"


def _unknown(target: str) -> str:
    """Why a target names no environment."""
    prefix, colon, _ = target.partition(":")
    hint = nearest(prefix, SOURCES) if colon else ""
    known = [source.written for source in SOURCES.values()]
    forms = ", ".join([*known, "agent:COMMAND", "verifiers:NAME"])
    return f"{target} is not FILE.py:CLASS, FILE.py, or one of {forms}. {hint}".rstrip()


class Loaded:
    """An environment, loaded. timeout_s: of one step or tool. Raises: EnvLoadError."""

    def __init__(
        self, target: str, args: Mapping[str, Any], *, is_tools: bool, timeout_s: float = 30.0
    ) -> None:
        self.file: Path | None = None
        self.args = dict(args)
        self.factory: Callable[..., Any] | None = None
        self.functions: dict[str, Callable[..., Any]] = {}
        if is_tools:
            self.form: Form = "functions"
            for part in split_tools(target):
                self._add_tools(part, timeout_s)
            return
        found = split_source(target)
        if found is not None:
            self.form = "steps"
            self.factory = load_source(*found, self.args, timeout_s=timeout_s)
            self.args = {}
            return
        self.file, name = find_file(target)
        self.factory = self._class_of(_load(self.file), name)
        self.form = "steps" if _has(self.factory, "step") else "methods"
        if self.form == "methods":
            self.functions = _methods_of(self.factory)
            if not self.functions:
                raise EnvLoadError(
                    f"{self.where(self.factory)}: {name} has neither a method step(reply) nor "
                    "methods that are tools."
                )

    def _add_tools(self, target: str, timeout_s: float) -> None:
        """Add the functions of one file, or the built-in tool."""
        if target == PYTHON_TOOL:
            from rlcli.envs.python_tool import python_tool

            found = {PYTHON_TOOL: python_tool(timeout_s)}
        else:
            self.file, _ = find_file(target)
            found = _functions_of(_load(self.file))
            if not found:
                raise EnvLoadError(
                    f"{self.file}: there is no function to call. Define one, with type hints and "
                    "a docstring."
                )
        for name, function in found.items():
            if name in self.functions:
                raise EnvLoadError(f"two tools have the name {name}. Rename the one in {target}.")
            self.functions[name] = function

    def create(self) -> Any:
        """A new environment."""
        assert self.factory is not None
        return self.factory(**self.args)

    @property
    def has_tasks(self) -> bool:
        """Whether the class has tasks of its own: `task(index, seed)`."""
        return _has(self.factory, "task")

    @property
    def has_end(self) -> bool:
        """Whether the number of its own tasks is limited: `__len__`."""
        return self.has_tasks and _has(self.factory, "__len__")

    @property
    def knows_answers(self) -> bool:
        """Whether the class has the right reply to a task: `answer(task)`."""
        return self.form == "steps" and _has(self.factory, "answer")

    @property
    def scores(self) -> bool:
        """Whether the environment gives the reward."""
        return self.form == "steps" or _has(self.factory, "get_reward")

    @property
    def floor(self) -> float:
        """Reward of an episode in which no step gave one."""
        return float(getattr(self.factory, "floor", 0.0))

    def schemas(self) -> list[dict[str, Any]]:
        """Tool schemas in OpenAI's form. Raises: EnvLoadError with file and line."""
        if self.form == "steps":
            given = getattr(self.factory, "tools", ())
            for each in given:
                if isinstance(each, dict) and "name" not in (each.get("function") or {}):
                    raise EnvLoadError(
                        f"{self.where(self.factory)}: a tool's schema lacks function.name: {each}"
                    )
            return [each if isinstance(each, dict) else self._schema(each) for each in given]
        return [self._schema(function) for function in self.functions.values()]

    def where(self, thing: Any) -> str:
        """`file.py:LINE` of a function or class."""
        try:
            return f"{self.file}:{inspect.getsourcelines(thing)[1]}"
        except (OSError, TypeError):
            return str(self.file)

    def _schema(self, function: Callable[..., Any]) -> dict[str, Any]:
        try:
            from transformers.utils import get_json_schema
        except ImportError as error:
            raise EnvLoadError(
                f"{self.where(function)}: {function.__name__} needs transformers to be offered as "
                f"a tool: {sys.executable} -m pip install transformers"
            ) from error
        try:
            return get_json_schema(function)
        except Exception as error:  # DocstringParsingException, TypeHintParsingException and others
            problem = str(error).split("\n")[0]
            raise EnvLoadError(
                f"{self.where(function)}: {function.__name__} cannot be offered as a tool: "
                f"{problem}\nA tool needs a type hint for every argument and a docstring that "
                "describes each under Args:."
            ) from error

    def _class_of(self, module: ModuleType, name: str) -> Callable[..., Any]:
        classes = {
            key: value
            for key, value in vars(module).items()
            if inspect.isclass(value) and value.__module__ == module.__name__
        }
        if not name and len(classes) == 1:
            (name,) = classes
        found = classes.get(name) or (vars(module).get(name) if name else None)
        if found is None or not callable(found):
            shown = f"no class {name}" if name else "no single class"
            raise EnvLoadError(
                f"{self.file}: there is {shown}; it has: {', '.join(classes) or 'none'}."
            )
        if not _has(found, "reset"):
            raise EnvLoadError(
                f"{self.where(found)}: {name} has no method reset(task, seed), which begins an "
                "episode."
            )
        return found


def accepted(function: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of `offered` that a function takes."""
    parameters = inspect.signature(function).parameters
    if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return dict(offered)
    return {name: value for name, value in offered.items() if name in parameters}


def split_tools(target: str) -> list[str]:
    """The targets of `--tools`, which are separated by commas."""
    return [part.strip() for part in target.split(",") if part.strip()]


def _has(thing: Any, name: str) -> bool:
    return callable(getattr(thing, name, None))


def _functions_of(module: ModuleType) -> dict[str, Callable[..., Any]]:
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and value.__module__ == module.__name__
        and not name.startswith(PRIVATE)
    }


def _methods_of(cls: Any) -> dict[str, Callable[..., Any]]:
    own = ("reset", "get_reward", "close", "task")
    members = inspect.getmembers(cls, predicate=inspect.isfunction)
    return {
        name: value for name, value in members if not name.startswith(PRIVATE) and name not in own
    }


def _load(path: Path) -> ModuleType:
    try:
        return load_file(path, kind="environment")
    except UserFileError as error:
        raise EnvLoadError(str(error)) from error
