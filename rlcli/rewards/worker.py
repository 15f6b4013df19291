"""A scoring process: loads one reward, then scores one call after the other until told to stop.

Runs as `python -m rlcli.rewards.worker CONNECTION_FD PARENT_PID REWARD_FN TIMEOUT_S [unsafe]`. A
reward may print, hang, raise, or kill the process; what it can never do is write into the protocol.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import sys
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from rlcli.errors import RewardError
from rlcli.machine import be_killed_first, die_with_parent
from rlcli.rewards.loading import (
    Resolver,
    find_file,
    is_rule,
    last_line,
    load_function,
    load_rules,
)
from rlcli.rewards.outcomes import NoOpinion, NotANumber, read_outcome
from rlcli.rewards.protocol import READY, STARTED, UNSAFE
from rlcli.rewards.rules.undecided import NoRule, Ungradable

RULE_MEMORY_BYTES = 4 << 30
"""Rules are given numbers such as 9**9**9 by bad policies: better no memory than a full machine."""


def main() -> None:
    """Serve calls from the connection until it closes."""
    fd, parent_pid, fn, timeout_s, *others = sys.argv[1:]
    del sys.argv[1:]
    _die_with(int(parent_pid))
    be_killed_first()
    if is_rule(fn) and sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (RULE_MEMORY_BYTES, RULE_MEMORY_BYTES))
    connection = Connection(int(fd))
    form: dict[str, Any] = {}
    try:
        if is_rule(fn):
            file = None
            resolve = load_rules(fn, timeout_s=float(timeout_s), allows_unsafe=UNSAFE in others)
        else:
            file, function = find_file(fn), load_function(fn)
            form = {"lists": function.lists, "columns": function.columns}
            resolve = partial(_always, function.call)
    except RewardError as error:
        connection.send_bytes(str(error).encode())
        return
    connection.send_bytes(READY + json.dumps(form).encode())
    while True:
        try:
            call = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        reply = _score(connection, resolve, call, file=str(file) if file else None)
        connection.send_bytes(json.dumps(reply).encode())


def _always(function: Callable[..., Any], data_source: str) -> Callable[..., Any]:
    """A user's function scores the rows of every data source."""
    return function


def _score(
    connection: Connection, resolve: Resolver, call: Mapping[str, Any], *, file: str | None
) -> dict[str, Any]:
    """{"score", "parts"} of one call, or {"error"}; with {"undecided": True}, not the last word."""
    try:
        function = resolve(call["data_source"])
        connection.send_bytes(STARTED)
        return read_outcome(function(**call))
    except (NoOpinion, NoRule, Ungradable) as error:
        return {"error": str(error), "undecided": True}
    except (NotANumber, RewardError) as error:
        return {"error": str(error)}
    except BaseException as error:  # the sandbox boundary: SystemExit too must not end the process
        return {"error": last_line(error, inside=file)}


def _die_with(parent_pid: int) -> None:
    """The kernel kills this process when the thread that started it ends, however that happens."""
    die_with_parent()
    if os.getppid() != parent_pid:
        os._exit(1)


if __name__ == "__main__":
    main()
