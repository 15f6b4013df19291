"""One state of the process's random generators for each episode.

Many environments draw from `random` or `numpy.random`, of which a process has one. Episodes share a
process and run in threads, so these module functions draw from the state of the thread's episode.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import random
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_thread = threading.local()


class EpisodeRandom:
    """Generators of one episode: Python's, and numpy's if it is used."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.python = random.Random(seed)
        self._numpy: Any = None

    @property
    def numpy(self) -> Any:
        """A RandomState of numpy."""
        if self._numpy is None:
            from numpy.random import RandomState

            self._numpy = RandomState(self._seed % 2**32)
        return self._numpy


def use_in_thread(state: EpisodeRandom | None) -> None:
    """Draw from `state` in this thread from now on; None: from the process's own."""
    _thread.state = state


@contextmanager
def drawing_from(state: EpisodeRandom | None) -> Iterator[None]:
    """Draw from `state` in this thread."""
    before = getattr(_thread, "state", None)
    use_in_thread(state)
    try:
        yield
    finally:
        use_in_thread(before)


def install() -> None:
    """Make `random` and `numpy.random` draw from the thread's state; call before other imports.

    A name that was imported from them earlier keeps drawing from the process's own state.
    """
    _replace(random, "random", lambda state: state.python)
    if "numpy.random" in sys.modules:
        _replace_numpy(sys.modules["numpy.random"])
    else:
        sys.meta_path.insert(0, _NumpyFinder())


def _replace(module: ModuleType, known: str, find: Callable[[EpisodeRandom], Any]) -> None:
    """Replace the functions of a module that are methods of its shared generator.

    known: name of one of them.
    """
    shared = getattr(module, known).__self__
    for name, value in list(vars(module).items()):
        if not name.startswith("_") and getattr(value, "__self__", None) is shared:
            setattr(module, name, _drawing(name, shared, find))


def _replace_numpy(module: ModuleType) -> None:
    """Replace numpy's, of which these three are functions around the shared generator."""
    shared = module.rand.__self__
    _replace(module, "rand", lambda state: state.numpy)
    for name, method in (("seed", "seed"), ("sample", "random_sample"), ("ranf", "random_sample")):
        setattr(module, name, _drawing(method, shared, lambda state: state.numpy))


def _drawing(name: str, shared: Any, find: Callable[[EpisodeRandom], Any]) -> Callable[..., Any]:
    def draw(*args: Any, **kwargs: Any) -> Any:
        state: EpisodeRandom | None = getattr(_thread, "state", None)
        return getattr(shared if state is None else find(state), name)(*args, **kwargs)

    draw.__name__ = name
    return draw


class _NumpyFinder(importlib.abc.MetaPathFinder):
    """Replaces numpy's functions once numpy is imported, before anyone can take one of them."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec of numpy.random with a loader that replaces its functions; else None."""
        if fullname != "numpy.random":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        loader: Any = spec.loader if spec else None
        if loader is not None:
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _replace_numpy(module)

            loader.exec_module = exec_module
        return spec
