"""The program that runs inside a sandbox, as one text."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = "rlcli.rewards.sandbox.inside"
INSIDE = Path(__file__).with_name("inside")
MODULES = ("wire", "calls", "solution")
"""What is sent into the sandbox, in the order of their imports; the last one sent runs."""
BOOT = """\
import sys, types
sys.path[:] = [path for path in sys.path if path]
def add(name, source):
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(source, name, "exec"), module.__dict__)
    return module
"""
SELF_TEST: dict[str, Any] = {
    "parts": ["def one():\n    return 1\n"],
    "tests": "assert one() == 1\n",
    "names": ["one"],
}
"""A job that right code passes."""


@cache
def inside_program(main: str = "tester") -> str:
    """The program that runs inside, as one text: the sandbox sees none of our files.

    main: the module that runs, tester or script.
    """
    added = [
        f"add({f'{PACKAGE}.{name}'!r}, {(INSIDE / f'{name}.py').read_text(encoding='utf-8')!r})"
        for name in (*MODULES, main)
    ]
    return "\n".join([BOOT, *added]) + ".main()\n"
