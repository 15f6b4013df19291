"""Workers of runs that are gone: they hold memory, GPUs and ports."""

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
"""Command lines of what a run starts, by module name or process title."""
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
    """Workers without a run, with the line that ends them."""
    if find_spec("psutil") is None:
        return []  # reported among the packages
    processes = list(_own_processes())
    reapers = {1, *(process.pid for process in processes if process.name in REAPERS)}
    return [leftover_finding(orphans(processes, reapers))]


def _own_processes() -> Iterator[Process]:
    import psutil

    user = os.getuid()
    wanted = ["pid", "ppid", "name", "cmdline", "create_time", "uids", "status"]
    for found in psutil.process_iter(wanted):
        about = found.info
        if about["uids"] is None or about["uids"].real != user or about["status"] == "zombie":
            continue
        yield Process(
            pid=about["pid"],
            parent=about["ppid"] or 0,
            name=about["name"] or "",
            command=" ".join(about["cmdline"] or [])[:500],
            age_s=time.time() - (about["create_time"] or time.time()),
        )


def orphans(processes: Sequence[Process], reapers: set[int]) -> list[Process]:
    """Workers whose parent has died, and workers below those."""
    lost = {p.pid: p for p in processes if WORKER.search(p.command) and p.parent in reapers}
    while True:
        more = [
            p
            for p in processes
            if p.pid not in lost and p.parent in lost and WORKER.search(p.command)
        ]
        if not more:
            return sorted(lost.values(), key=lambda process: process.pid)
        lost |= {process.pid: process for process in more}


def leftover_finding(lost: Sequence[Process]) -> Finding:
    """`lost` in one line."""
    name = "leftover workers"
    if not lost:
        return Finding(name, "ok", "none")
    said = [f"{p.pid} ({_short(p)}, {age(p.age_s)} old)" for p in lost[:SHOWN]]
    more = f" and {len(lost) - SHOWN} more" if len(lost) > SHOWN else ""
    says = f"no run is above process {', '.join(said)}{more}"
    pids = " ".join(str(process.pid) for process in lost)
    return Finding(name, "warn", says, f"if you do not need them: kill {pids}")


def _short(process: Process) -> str:
    match = WORKER.search(process.command)
    if process.command.startswith("VLLM::"):
        return process.command.split()[0]
    return match[0].rstrip(".") if match else process.name
