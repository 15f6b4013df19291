"""Which environments there are: libraries in a Python, and what is built in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from rlcli.envs.loading import ASSETS
from rlcli.envs.process import check_python
from rlcli.errors import ConfigError
from rlcli.rewards.process import child_environment, module_command

LIMIT_S = 120.0
MODULE = "rlcli.envs.sources.inventory"


def find_libraries(*, python: str | None = None, prefix: str | None = None) -> Mapping[str, Any]:
    """Facts of each library by prefix: is_installed, version, install; names of `prefix`'s.

    python: the Python to look into; None: this one. Raises: ConfigError if it cannot be run.
    """
    if python is not None:
        check_python(python)
    command = [*module_command(MODULE, python), *([prefix] if prefix else [])]
    environment = child_environment(os.environ, is_other_python=python is not None)
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT_S, env=environment, check=True
        )
        return json.loads(answer.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"the names of {prefix} took longer than {LIMIT_S:g} s.") from error
    except subprocess.CalledProcessError as error:
        last = (error.stderr or "").strip().rpartition("\n")[2]
        raise ConfigError(f"{python or sys.executable} failed: {last}") from error


def builtin_tools() -> list[str]:
    """Files of tools that are built in, as targets of --tools."""
    return [f"builtin:{file.parent.name}" for file in sorted(ASSETS.glob("*/tools.py"))]
