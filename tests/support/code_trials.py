"""Code tried in a sandbox, and the processes that this starts."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rlcli.rewards.sandbox import Sandbox, SandboxFailed

TESTS = "assert f(2) == 3"
LIMIT_S = 60.0


def verdict(
    box: Sandbox, code: str, tests: str = TESTS, *, limit_s: float = LIMIT_S, **job: Any
) -> tuple[bool, str]:
    names = job.pop("names", ["f"])
    outcome = box.grade({"parts": [code], "tests": tests, "names": names, **job}, limit_s=limit_s)
    return outcome.passed, outcome.why


def verdict_on_endless(
    box: Sandbox, code: str, seen: set[int], *, least: int
) -> tuple[tuple[bool, str], float]:
    """(the verdict, the seconds it was given), with `least` processes `seen` meanwhile.

    They are few seconds, and more where a busy machine has not started as many by then.
    """
    for limit_s in (1.5, 15.0, LIMIT_S):
        try:
            found = verdict(box, code, limit_s=limit_s)
        except SandboxFailed:
            if limit_s == LIMIT_S:
                raise
        else:
            if len(seen) >= least:
                break
    return found, limit_s


@contextmanager
def watch() -> Iterator[set[int]]:
    """The processes that this one starts meanwhile, and those that they start."""
    seen: set[int] = set()
    before, is_over = descendants(os.getpid()), threading.Event()

    def look() -> None:
        while not is_over.wait(0.02):
            seen.update(descendants(os.getpid()) - before)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        is_over.set()
        thread.join()


def descendants(pid: int) -> set[int]:
    parents = {child: int(fields[1]) for child, fields in processes().items()}
    found: set[int] = set()
    while more := {child for child in parents if parents[child] in found | {pid}} - found:
        found |= more
    return found


def alive(pids: set[int]) -> set[int]:
    """Those of `pids` that are there and no zombies."""
    return {pid for pid, fields in processes().items() if pid in pids and fields[0] != "Z"}


def processes() -> dict[int, list[str]]:
    """pid -> state, parent, and more, of every process of this machine."""
    found = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            found[int(file.parent.name)] = file.read_text().rpartition(")")[2].split()
    return found
