"""The `reward.fn` of a Python object that a program or a notebook passes as its reward."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlcli.errors import RewardError
from rlcli.rewards.in_process import keep_here
from rlcli.rewards.loading import PICKLED
from rlcli.rewards.signatures import adapt
from rlcli.rewards.user_file import last_line


def name_function(function: Callable[..., Any], folder: Path) -> tuple[str, list[str]]:
    """(its `reward.fn`, notes).

    A function of a module is named by it. Any other is pickled into `folder`, so that the scoring
    processes, a resumed run and `rlcli eval` find it; without cloudpickle it stays in this process.

    Raises: RewardError if it cannot be called as a reward, or `folder` cannot be written.
    """
    name = re.sub(r"\W+", "_", getattr(function, "__name__", type(function).__name__)).strip("_")
    adapt(function, name=name, where="reward")
    module = _module_of(function)
    if module is not None:
        return f"{module}:{function.__name__}", []
    try:
        pickled = _pickle(function)
    except ImportError:
        reason = "cloudpickle is not installed: pip install cloudpickle"
    except Exception as error:  # whatever a user's object raises when it is pickled
        reason = f"it cannot be pickled: {last_line(error)}"
    else:
        return str(_write(pickled, name, folder)), []
    note = (
        f"the reward {name} is called in this process, one response at a time and without "
        f"reward.timeout_s ({reason})."
    )
    return keep_here(function, name), [note]


def _module_of(function: Any) -> str | None:
    """The module from which another process can import `function`; None if there is none."""
    module, name = getattr(function, "__module__", None), getattr(function, "__name__", "")
    if module in (None, "__main__") or not _is_importable(module):
        return None
    return module if vars(sys.modules[module]).get(name) is function else None


def _is_importable(module: str) -> bool:
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return False
    loaded = getattr(sys.modules.get(module), "__file__", None)
    return found is not None and found.origin is not None and found.origin == loaded


def _pickle(function: Any) -> bytes:
    """Raises: ImportError without cloudpickle; anything for an object that cannot be pickled."""
    import cloudpickle  # pyright: ignore[reportMissingImports]

    module = sys.modules.get(getattr(function, "__module__", ""))
    if module is None or module.__name__ == "__main__" or _is_importable(module.__name__):
        return cloudpickle.dumps(function)
    cloudpickle.register_pickle_by_value(module)
    try:
        return cloudpickle.dumps(function)
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def _write(pickled: bytes, name: str, folder: Path) -> Path:
    """Named by its content: a running run is not given another function."""
    path = folder / f"{name}-{hashlib.sha256(pickled).hexdigest()[:12]}{PICKLED}"
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch.write_bytes(pickled)
        os.replace(scratch, path)
    except OSError as error:
        raise RewardError(
            f"the reward {name} cannot be written to {folder}: {error.strerror}. Choose another "
            "run.output_dir."
        ) from error
    return path.absolute()
