"""A scoring process: loads one reward, then scores one call after the other.

Runs as `python -m rlcli.rewards.worker CONNECTION_FD PARENT_PID REWARD_FN TIMEOUT_S [unsafe]`. A
reward may print, hang, raise, or kill the process; what it can never do is write into the protocol.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from rlcli.errors import RewardError
from rlcli.rewards.loading import (
    PICKLED,
    find_file,
    is_rule,
    load_function,
    load_rules,
    reply_to,
)
from rlcli.rewards.parent_pipe import ParentGone, ParentPipe
from rlcli.rewards.protocol import READY, STARTED, UNSAFE
from rlcli.system.hardware import be_killed_first, die_with_parent

RULE_MEMORY_BYTES = 4 << 30
"""Rules are given numbers such as 9**9**9 by bad policies: better no memory than a full machine."""


def main() -> None:
    """Serve calls from the parent until its end of the pipe closes."""
    fd, parent_pid, fn, timeout_s, *others = sys.argv[1:]
    del sys.argv[1:]
    _die_with(int(parent_pid))
    be_killed_first()
    if is_rule(fn) and sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (RULE_MEMORY_BYTES, RULE_MEMORY_BYTES))
    with suppress(ParentGone):
        _serve(ParentPipe(int(fd)), fn, timeout_s=float(timeout_s), allows_unsafe=UNSAFE in others)


def _serve(pipe: ParentPipe, fn: str, *, timeout_s: float, allows_unsafe: bool) -> None:
    """Load the reward and score. Returns when it cannot be loaded. Raises: ParentGone."""
    form: dict[str, Any] = {}
    try:
        if is_rule(fn):
            file = None
            resolve = load_rules(fn, timeout_s=timeout_s, allows_unsafe=allows_unsafe)
        else:
            path, function = find_file(fn), load_function(fn)
            file = function.file if path and path.suffix == PICKLED else path
            form = {"lists": function.lists, "columns": function.columns}
            resolve = partial(_always, function.call)
    except RewardError as error:
        pipe.send(str(error).encode())
        return
    pipe.send(READY + json.dumps(form).encode())
    while True:
        call = pickle.loads(pipe.receive())
        on_begin = partial(pipe.send, STARTED)
        reply = reply_to(call, resolve, file=str(file) if file else None, on_begin=on_begin)
        pipe.send(json.dumps(reply).encode())


def _always(function: Callable[..., Any], data_source: str) -> Callable[..., Any]:
    """Resolver of a user's function: the same for every data source."""
    return function


def _die_with(parent_pid: int) -> None:
    """The kernel kills this process when the thread that started it ends, however that happens."""
    die_with_parent()
    if os.getppid() != parent_pid:
        os._exit(1)


if __name__ == "__main__":
    main()
