"""What `rlcli env list` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlcli.envs.inventory import builtin_tools
from rlcli.envs.sources import SOURCES
from rlcli.terminal.text import WIDTH, in_columns


def form_lines(libraries: Mapping[str, Any]) -> list[str]:
    """The forms of environments and tools, and whether each library is installed."""
    rows = [
        ("--env FILE.py:CLASS", "a class of yours: reset and step, or TRL's form"),
        ("--tools FILE.py", "functions of yours"),
        ("--tools python", "runs the model's code in the sandbox"),
        *((f"--tools {target}", "built in") for target in builtin_tools()),
        *((f"--env {source.written}", source.title) for source in SOURCES.values()),
        ("--env agent:COMMAND", "a program that calls the policy through an OpenAI client"),
        ("--env verifiers:NAME", "a task set of verifiers 0.4, with --env_python"),
    ]
    lines = [*in_columns(rows), ""]
    for prefix, facts in libraries.items():
        source = SOURCES[prefix]
        if facts["is_installed"]:
            version = facts["version"] or ""
            lines.append(f"{prefix}: {source.package} {version} is installed".rstrip())
        else:
            lines += [f"{prefix}: not installed. To install:", f"  {facts['install']}"]
    return [*lines, "", "rlcli env list LIBRARY shows the names of a library's environments."]


def name_lines(prefix: str, facts: Mapping[str, Any]) -> list[str]:
    """The names of a library's environments in columns, or why there are none."""
    if "error" in facts:
        return str(facts["error"]).split("\n")
    names: Sequence[str] = facts["names"]
    if not names:
        return [f"{SOURCES[prefix].written}: a server offers one environment; it has no list."]
    longest = max(map(len, names))
    columns = max(1, WIDTH // (longest + 2))
    height = -(-len(names) // columns)
    table = [[*names[row::height]] for row in range(height)]
    wide = [row + [""] * (columns - len(row)) for row in table]
    count = f"{len(names)} environments: --env {prefix}:NAME"
    return [*(line.rstrip() for line in in_columns(wide)), count]
