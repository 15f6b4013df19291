"""Load a user's Python file as a module, with errors that name file and line."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType


class UserFileError(Exception):
    """A file that cannot be loaded; the message names file and line."""


def load_file(path: Path, *, kind: str) -> ModuleType:
    """The module of a file. kind: prefix of the module's name, so that kinds do not collide.

    Raises: UserFileError.
    """
    # Its own folder is searched first, as when a script is run: users split files.
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(f"{kind}_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserFileError(f"{path}: expected a Python file that ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        where = f"{error.filename or path}:{error.lineno}"
        raise UserFileError(f"{where}: {type(error).__name__}: {error.msg}") from error
    except BaseException as error:  # a user's file may raise anything, SystemExit too
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        line = lines[-1] if lines else 1
        raise UserFileError(f"{path}:{line}: cannot be loaded: {last_line(error)}") from error
    return module


def last_line(error: BaseException, *, inside: str | None = None) -> str:
    """The last line of the traceback, and the line of file `inside` where it came from."""
    message = traceback.format_exception_only(error)[-1].strip()
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == inside]
    where = f" ({Path(inside).name}:{lines[-1]})" if inside and lines else ""
    return f"{message[:500]}{where}"
