"""Run a server, and end it with all its processes when the parent process is gone.

Run as a file, leading a process group: guard.py PARENT COMMAND...
A signal from the kernel (die_with_parent) would only end the server and leave its engine.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

TICK_S = 0.1
GRACE_S = 1.5
"""Time for the server to exit by itself, in seconds."""
TIDY_S = 0.7
TRACKER = b"multiprocessing.resource_tracker"
"""Process that frees shared memory after all its users are gone."""


def main() -> None:
    """Never returns: the group is killed."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    is_asked = False

    def end(*_: object) -> None:
        nonlocal is_asked
        is_asked = True

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    server = subprocess.Popen(command)
    while server.poll() is None and os.getppid() == parent and not is_asked:
        time.sleep(TICK_S)
    if server.poll() is None:
        server.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.wait(GRACE_S)
    deadline_s = time.monotonic() + TIDY_S
    while (others := group_members()) and time.monotonic() < deadline_s:
        for process, command_line in others.items():
            if TRACKER not in command_line:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        time.sleep(TICK_S)
    os.killpg(0, signal.SIGKILL)


def group_members() -> dict[int, bytes]:
    """Other live processes of this group with their command lines, from Linux's /proc."""
    found: dict[int, bytes] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            state, _, group = (folder / "stat").read_text().rpartition(") ")[2].split()[:3]
            if int(group) == os.getpid() != int(folder.name) and state != "Z":
                found[int(folder.name)] = (folder / "cmdline").read_bytes()
    return found


if __name__ == "__main__":
    main()
