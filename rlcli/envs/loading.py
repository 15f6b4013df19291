"""From a user's file to an environment: plain functions, a reset/step class, or TRL's form.

Imported by the environment process, so it stays light.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

Form = Literal["functions", "steps", "methods"]
"""functions: a file of tools. steps: a class with reset and step. methods: TRL's form, a class with
reset whose other public methods are tools."""
ASSETS = Path(__file__).resolve().parent.parent / "assets"
BUILTIN = "builtin:"
PRIVATE = "_"


class EnvLoadError(Exception):
    """A file that cannot be loaded, or has no environment; the message names file and line."""


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
        raise EnvLoadError(f"{target} is not FILE.py or FILE.py:CLASS.")
    path = Path(os.path.expanduser(place)).absolute()
    if not path.is_file():
        raise EnvLoadError(f"there is no file {path}.")
    return path, name


class Loaded:
    """An environment's file. Raises: EnvLoadError."""

    def __init__(self, target: str, args: Mapping[str, Any], *, is_tools: bool) -> None:
        self.file, name = find_file(target)
        self.args = dict(args)
        module = _load(self.file)
        self.factory: Callable[..., Any] | None = None
        self.functions: dict[str, Callable[..., Any]] = {}
        if is_tools:
            self.form: Form = "functions"
            self.functions = _functions_of(module)
            if not self.functions:
                raise EnvLoadError(
                    f"{self.file}: there is no function to call. Define one, with type hints and "
                    "a docstring."
                )
            return
        self.factory = self._class_of(module, name)
        self.form = "steps" if _has(self.factory, "step") else "methods"
        if self.form == "methods":
            self.functions = _methods_of(self.factory)
            if not self.functions:
                raise EnvLoadError(
                    f"{self.where(self.factory)}: {name} has neither a method step(reply) nor "
                    "methods that are tools."
                )

    def create(self) -> Any:
        """A new environment."""
        assert self.factory is not None
        return self.factory(**self.args)

    @property
    def has_tasks(self) -> bool:
        """Whether the class has tasks of its own: `__len__` and `task(index, seed)`."""
        return _has(self.factory, "__len__") and _has(self.factory, "task")

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
        from transformers.utils import get_json_schema

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


def last_line(error: BaseException, file: Path) -> str:
    """The last line of a traceback, and the line of `file` where it came from."""
    message = traceback.format_exception_only(error)[-1].strip()
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(file)]
    return f"{message[:500]} ({file.name}:{lines[-1]})" if lines else message[:500]


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
    # Its own folder is searched first, as when a script is run: users split files.
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(f"environment_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        where = error.filename or path
        raise EnvLoadError(f"{where}:{error.lineno}: SyntaxError: {error.msg}") from error
    except BaseException as error:  # a user's file may raise anything, SystemExit too
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        line = lines[-1] if lines else 1
        raise EnvLoadError(f"{path}:{line}: cannot be loaded: {last_line(error, path)}") from error
    return module
