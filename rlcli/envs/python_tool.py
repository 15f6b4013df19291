"""The built-in tool `python`: a program of the model, run in the sandbox."""

from __future__ import annotations

from collections.abc import Callable

from rlcli.envs.sources import EnvLoadError
from rlcli.rewards.sandbox import NoSandbox, SandboxFailed, find_sandbox

LIMIT_S = 10.0
"""Seconds of a program at most; less if env.timeout_s leaves less."""
SHARE_OF_TIME = 0.8
"""Of env.timeout_s: the sandbox needs time to start and end."""


def python_tool(timeout_s: float) -> Callable[[str], str]:
    """The tool. timeout_s: of one call. Raises: EnvLoadError where no sandbox works."""
    try:
        sandbox = find_sandbox()
    except NoSandbox as error:
        raise EnvLoadError(
            f"the tool python has no sandbox to run code in: {error.problem}.\n"
            f"To have one: {error.cure}."
        ) from error
    limit_s = min(LIMIT_S, SHARE_OF_TIME * timeout_s)

    def python(code: str) -> str:
        """Run a Python program and return what it prints.

        Each call starts a new program. There is no network, and no file is kept.

        Args:
            code: The program.
        """
        try:
            return sandbox.run_program(code, limit_s=limit_s)
        except SandboxFailed as error:
            raise RuntimeError(str(error)) from error

    return python
