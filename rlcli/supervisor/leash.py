"""Becomes the command it is given, to be killed when the process that started it is gone.

Run as a file, before anything of the package is loaded: leash.py PARENT COMMAND...
The kernel ends one process so; rollout/vllm/guard.py ends one with all that it started.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Never returns."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    # a Ctrl-C in this moment ends it without a traceback; the command sets a handler of its own
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if os.getppid() != parent:  # gone before the kernel was told
        os._exit(1)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
