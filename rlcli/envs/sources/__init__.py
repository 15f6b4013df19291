"""Environments of other libraries: `reasoning-gym:NAME`, `textarena:NAME`, `openenv:URL`.

Imported by the environment process, which may run in another Python: only the standard library.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


class EnvLoadError(Exception):
    """An environment that cannot be loaded; the message names what is wrong and the cure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A library of environments. module: of `load(name, args)` and `names()`.

    package: what the module imports. requirement: what to install for it.
    """

    prefix: str
    written: str
    title: str
    module: str
    package: str
    requirement: str

    @property
    def install(self) -> str:
        """The pip command for this Python."""
        return f"{sys.executable} -m pip install '{self.requirement}'"


SOURCES: Mapping[str, Source] = {
    source.prefix: source
    for source in (
        Source(
            prefix="reasoning-gym",
            written="reasoning-gym:NAME",
            title="generated puzzles and sums with one answer each",
            module="rlcli.envs.sources.reasoning_gym",
            package="reasoning_gym",
            requirement="reasoning-gym>=0.1.25",
        ),
        Source(
            prefix="textarena",
            written="textarena:NAME",
            title="text games for one or several players",
            module="rlcli.envs.sources.textarena",
            package="textarena",
            requirement="textarena>=0.7.4",
        ),
        Source(
            prefix="openenv",
            written="openenv:URL",
            title="environments that an OpenEnv server offers",
            module="rlcli.envs.sources.openenv",
            package="websockets",
            requirement="websockets>=13",
        ),
    )
}


def split_source(target: str) -> tuple[Source, str] | None:
    """(source, name) of `PREFIX:NAME`; None for any other target."""
    prefix, colon, name = target.partition(":")
    source = SOURCES.get(prefix)
    return (source, name) if colon and source is not None else None


def load_source(source: Source, name: str, args: Mapping[str, Any], *, timeout_s: float) -> Any:
    """Load the environment class `name` of a library. Raises: EnvLoadError.

    timeout_s: limit of one step; clients of a server must time out earlier.
    """
    found = import_source(source).load(name, args)
    found.timeout_s = timeout_s
    return found


def import_source(source: Source) -> Any:
    """The module of a source. Raises: EnvLoadError where its library is not installed."""
    try:
        importlib.import_module(source.package)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != source.package:
            raise EnvLoadError(f"{source.package} cannot be imported: {error}.") from error
        raise EnvLoadError(
            f"{source.written} needs {source.package}, which this Python does not have.\n"
            f"Install it: {source.install}\n"
            "Or name another Python that has it: --env_python PYTHON."
        ) from error
    except Exception as error:
        raise EnvLoadError(f"{source.package} cannot be imported: {error}.") from error
    return importlib.import_module(source.module)


def nearest(name: str, known: Iterable[str]) -> str:
    """`Nearest: a, b.` for a misspelt name, or an empty text."""
    lower = {each.lower(): each for each in known}
    close = difflib.get_close_matches(name.lower(), lower, n=3)
    if not close:
        close = [each for each in lower if name and name.lower() in each][:3]
    return f"Nearest: {', '.join(lower[each] for each in close)}. " if close else ""
