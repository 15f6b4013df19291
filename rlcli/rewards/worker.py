"""A scoring process: loads one reward, then scores one call after the other until told to stop.

Runs as `python -m rlcli.rewards.worker CONNECTION_FD PARENT_PID REWARD_FN TIMEOUT_S [unsafe]`. A
reward may print, hang, raise, or kill the process; what it can never do is write into the protocol.
"""

from __future__ import annotations

import ctypes
import json
import math
import numbers
import os
import pickle
import resource
import signal
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

from rlcli.errors import RewardError
from rlcli.machine import be_killed_first
from rlcli.rewards.loading import Resolver, find_file, is_rule, last_line, load
from rlcli.rewards.protocol import READY, STARTED, UNSAFE
from rlcli.rewards.rules.explained import Explained
from rlcli.rewards.rules.undecided import NoRule, Undecided, Ungradable

RULE_MEMORY_BYTES = 4 << 30
"""Rules are given numbers such as 9**9**9 by bad policies: better no memory than a full machine."""
PR_SET_PDEATHSIG = 1


class NotANumber(Exception):
    """A reward returned something that is no score."""


class NoOpinion(NotANumber):
    """A reward returned None: a judge may be asked, where there is one behind it."""


def main() -> None:
    """Serve calls from the connection until it closes."""
    fd, parent_pid, fn, timeout_s, *others = sys.argv[1:]
    del sys.argv[1:]
    _die_with(int(parent_pid))
    be_killed_first()
    if is_rule(fn) and sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (RULE_MEMORY_BYTES, RULE_MEMORY_BYTES))
    connection = Connection(int(fd))
    try:
        resolve = load(fn, timeout_s=float(timeout_s), allows_unsafe=UNSAFE in others)
        file = None if is_rule(fn) else find_file(fn)
    except RewardError as error:
        connection.send_bytes(str(error).encode())
        return
    connection.send_bytes(READY)
    while True:
        try:
            call = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        reply = _score(connection, resolve, call, file=str(file) if file else None)
        connection.send_bytes(json.dumps(reply).encode())


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


def read_outcome(outcome: Any) -> dict[str, Any]:
    """{"score": float | None, "parts": {name: float}} of what a reward returned.

    The entry `score` of a dict is the score; its other numbers are parts, the rest is left out.
    A rule may add {"reason": text}.

    Raises:
        NotANumber: it is not a finite number, nor a dict of such; NoOpinion: it is None.
    """
    if isinstance(outcome, Undecided):
        return {"score": 0.0, "parts": {}, "undecided": True}
    if not isinstance(outcome, Mapping):
        score = _number(outcome)
        if score is None:
            problem = NoOpinion if outcome is None else NotANumber
            raise problem(
                f"the reward returned {_shown(outcome)}, expected a number (True and False are "
                "none: return 1.0 or 0.0) or a dict with 'score'"
            )
        reason = {"reason": outcome.reason} if isinstance(outcome, Explained) else {}
        return {"score": _finite("the reward", score), "parts": {}, **reason}
    found = {str(name): _number(value) for name, value in outcome.items()}
    if "score" in found and found["score"] is None:
        raise NotANumber(f"'score' is {_shown(outcome['score'])}, expected a number")
    values = {name: _finite(name, value) for name, value in found.items() if value is not None}
    score = values.pop("score", None)
    if score is None and not values:
        raise NotANumber(f"the reward returned a dict without numbers: {_shown(outcome)}")
    return {"score": score, "parts": values}


def _number(value: Any) -> float | None:
    """Numbers of Python, numpy and torch as float; None for anything else, booleans included."""
    if getattr(value, "shape", None) == ():
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    return float(value)


def _finite(name: str, value: float) -> float:
    if not math.isfinite(value):
        raise NotANumber(f"{name} is {value}, expected a finite number")
    return value


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {value!r}"[:120]


def _die_with(parent_pid: int) -> None:
    """The kernel kills this process when the thread that started it ends, however that happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


if __name__ == "__main__":
    main()
