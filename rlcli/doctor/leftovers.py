"""Find workers left over from dead runs, which hold memory, GPUs and ports."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from rlcli.system.finding import Finding
from rlcli.terminal.text import age

WORKER = re.compile(
    r"\brlcli\.(?!cli\b)[\w.]*(?:worker|server)\b|^VLLM::|\bvllm\.(?:entrypoints|v1)\."
    r"|\bdeepspeed\.launcher\.|\btorch\.distributed\.(?:run|launch)\b|\btorchrun\b"
)
"""Command lines of a run's worker processes, by module name or process title."""
REAPERS = frozenset({"systemd", "init", "tini", "dumb-init", "docker-init", "launchd"})
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Process:
    """A process of this user. `parent`: process id of its parent."""

    pid: int
    parent: int
    name: str
    command: str
    age_s: float = 0.0


def leftover_findings() -> list[Finding]:
    """Workers without a run, with the command that ends them."""
    if find_spec("psutil") is None:
        return []  # reported among the packages
    processes = list(_own_processes())
    reapers = {1, *(process.pid for process in processes if process.name in REAPERS)}
    return [leftover_finding(orphans(processes, reapers))]


def _own_processes() -> Iterator[Process]:
    import psutil

    user = os.getuid()
    attributes = ["pid", "ppid", "name", "cmdline", "create_time", "uids", "status"]
    for running in psutil.process_iter(attributes):
        info = running.info
        if info["uids"] is None or info["uids"].real != user or info["status"] == "zombie":
            continue
        yield Process(
            pid=info["pid"],
            parent=info["ppid"] or 0,
            name=info["name"] or "",
            command=" ".join(info["cmdline"] or [])[:500],
            age_s=time.time() - (info["create_time"] or time.time()),
        )


def orphans(processes: Sequence[Process], reapers: set[int]) -> list[Process]:
    """Workers whose parent has died, and their descendants that are workers."""
    orphaned = {p.pid: p for p in processes if WORKER.search(p.command) and p.parent in reapers}
    while True:
        more = [
            p
            for p in processes
            if p.pid not in orphaned and p.parent in orphaned and WORKER.search(p.command)
        ]
        if not more:
            return sorted(orphaned.values(), key=lambda process: process.pid)
        orphaned |= {process.pid: process for process in more}


def leftover_finding(orphaned: Sequence[Process]) -> Finding:
    """One line about the orphaned workers."""
    name = "leftover workers"
    if not orphaned:
        return Finding(name, "ok", "none")
    said = [f"{p.pid} ({_short(p)}, {age(p.age_s)} old)" for p in orphaned[:SHOWN]]
    more = f" and {len(orphaned) - SHOWN} more" if len(orphaned) > SHOWN else ""
    says = f"no run is above process {', '.join(said)}{more}"
    pids = " ".join(str(process.pid) for process in orphaned)
    return Finding(name, "warn", says, f"if you do not need them: kill {pids}")


def _short(process: Process) -> str:
    match = WORKER.search(process.command)
    if process.command.startswith("VLLM::"):
        return process.command.split()[0]
    return match[0].rstrip(".") if match else process.name
