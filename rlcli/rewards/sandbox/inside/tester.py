"""The process of the tests: it calls the model's code in another process and gives the verdict.

The other process is forked before the job is read, so that nothing of the tests is in it.
"""

from __future__ import annotations

import builtins
import ctypes
import json
import os
import signal
import sys
import types
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from rlcli.rewards.sandbox.inside.solution import limit, serve
from rlcli.rewards.sandbox.inside.wire import BadValue, Channel, decode, encode, update

PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4
MAX_WHY = 300
MEMORY = {"AS": 1 << 30, "CORE": 0}


class Failed(BaseException):
    """The code is wrong, whatever the tests would make of it: they cannot catch this."""


class InvalidTests(BaseException):
    """Nothing can be said of the code, for a reason that is not in the code."""


def main() -> None:
    """Read the job, run it, write the verdict. Tests print nowhere."""
    _shield()
    requests, replies = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        _die_with_parent()
        os.close(requests[1])
        os.close(replies[0])
        _hush()
        serve(Channel(requests[0], replies[1]))
    os.close(requests[0])
    os.close(replies[1])
    verdict_fd = os.dup(1)
    _write(verdict_fd, {"ready": True})
    with open(0, "rb", closefd=False) as file:
        job = json.load(file)
    _hush()
    verdict = _grade(job, Channel(replies[0], requests[1]))
    _write(verdict_fd, {"nonce": job["nonce"], **verdict})
    os.kill(pid, signal.SIGKILL)
    os._exit(0)


def _grade(job: Mapping[str, Any], channel: Channel) -> dict[str, Any]:
    """{"passed": bool, "why"} or {"unscored": why}."""
    try:
        if "cases" in job:
            _run_programs(job, channel)
        elif "calls" in job:
            _run_calls(job, _Remote(channel))
        else:
            _run_tests(job, _Remote(channel))
    except InvalidTests as reason:
        return {"unscored": str(reason)}
    except Failed as reason:
        return {"passed": False, "why": str(reason)[:MAX_WHY]}
    except BaseException as error:
        return {"passed": False, "why": _said(error, job.get("tests", ""))[:MAX_WHY]}
    return {"passed": True, "why": ""}


def _run_programs(job: Mapping[str, Any], channel: Channel) -> None:
    """The code as a program, once for every (standard input, output). Space at ends is ignored."""
    for number, (stdin, expected) in enumerate(job["cases"], start=1):
        reply = _ask(
            channel, {"do": "run", "stdin": stdin, "parts": job["parts"], "limits": job["limits"]}
        )
        if reply["status"] != 0:
            raise Failed(f"case {number}: the program ended with exit code {reply['status']}")
        if _lines(reply["output"]) != _lines(expected):
            raise Failed(f"case {number}: another output")


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _run_calls(job: Mapping[str, Any], remote: _Remote) -> None:
    """A function of the code, or a method of a class of it, for every (arguments, result).

    A lone result may stand in a list, as in APPS and TACO.
    """
    remote.load(job)
    target = remote.ask({"do": "name", "name": job["path"][0]})
    for name in job["path"][1:]:
        target = getattr(target(), name)
    for number, (arguments, expected) in enumerate(job["calls"], start=1):
        found = _plain(target(*arguments))
        if found != expected and [found] != expected:
            raise Failed(f"case {number}: another result")


def _plain(value: Any) -> Any:
    """Tuples and arrays as lists: JSON has no others, and an empty array is equal to anything."""
    if type(value).__module__ == "numpy":
        value = value.tolist()
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _run_tests(job: Mapping[str, Any], remote: _Remote) -> None:
    """The tests, with stand-ins for the names of the code that they use."""
    if job["modules"]:
        import importlib.util
    for name in job["modules"]:
        if importlib.util.find_spec(name) is None:
            raise InvalidTests(f"the tests import {name}, which {sys.executable} does not have")
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    names = module.__dict__
    exec(compile(job["prefix"], "<prompt>", "exec", dont_inherit=True), names)
    tests = compile(job["tests"], "<tests>", "exec", dont_inherit=True)
    remote.load(job)
    for name in job["names"]:
        with suppress(NameError):  # the tests will say so where they need it
            names[name] = remote.ask({"do": "name", "name": name})
    names.update({name: importlib.import_module(name) for name in job["stdlib"]})
    remote.calls = 0
    exec(tests, names)
    if not remote.calls:  # as for pytest: functions that nobody has called yet
        for name in [name for name in names if name.startswith("test")]:
            names[name]()
    if not remote.calls:
        raise InvalidTests("the tests never call the code")


class _Remote:
    """The other process as the tests see it."""

    def __init__(self, channel: Channel) -> None:
        self.calls = 0
        self._channel = channel
        self._things: dict[int, Thing] = {}

    def ask(self, request: dict[str, Any], given: Mapping[Any, Any] | None = None) -> Any:
        """The value of a request; raises what the code raised, as the nearest builtin class.

        given: the arguments of a call, by place or name; the code may have changed some in place.
        """
        self.calls += 1
        reply = _ask(self._channel, request)
        if "raise" in reply:
            raise _error(reply["raise"], str(reply.get("says")))
        try:
            for name, content in reply.get("changed", ()):
                update((given or {}).get(name), decode(content, self._thing))
            return decode(reply.get("value"), self._thing)
        except (BadValue, TypeError, ValueError) as error:
            raise Failed(f"the code returned {error}") from error

    def load(self, job: Mapping[str, Any]) -> None:
        """Have the code of a job run up to its end."""
        self.ask({"do": "load", "parts": job["parts"], "limits": job["limits"]})

    def pack(self, value: Any) -> Any:
        """A value of the tests for the code. Raises: InvalidTests where it is no literal."""
        return encode(value, self._number)

    def _thing(self, number: int) -> Thing:
        if number not in self._things:
            self._things[number] = Thing(self, number)
        return self._things[number]

    def _number(self, value: Any) -> int:
        if isinstance(value, Thing):
            return _numbers[id(value)]
        raise InvalidTests(
            f"the tests hand the code a {type(value).__name__}, which cannot be sent"
        )


_numbers: dict[int, int] = {}
"""id of a stand-in -> its number; a stand-in itself has no names of its own."""
_remotes: dict[int, _Remote] = {}


class Thing:
    """A stand-in for an object of the code: it can be called, and its attributes used.

    It is equal to itself only and has no operators: an object that claims to be equal to
    everything, or smaller, is none of that here.
    """

    __slots__ = ()

    def __init__(self, remote: _Remote, number: int) -> None:
        _numbers[id(self)] = number
        _remotes[id(self)] = remote

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        remote, number = _remotes[id(self)], _numbers[id(self)]
        given = {**dict(enumerate(arguments)), **keywords}
        packed = {"arguments": remote.pack(arguments), "keywords": remote.pack(keywords)}
        return remote.ask({"do": "call", "ref": number, **packed}, given)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        remote, number = _remotes[id(self)], _numbers[id(self)]
        return remote.ask({"do": "get", "ref": number, "name": name})

    def __setattr__(self, name: str, value: Any) -> None:
        remote, number = _remotes[id(self)], _numbers[id(self)]
        remote.ask({"do": "set", "ref": number, "name": name, "value": remote.pack(value)})


def _ask(channel: Channel, request: Mapping[str, Any]) -> dict[str, Any]:
    """Raises: Failed when the other process is gone or talks nonsense."""
    try:
        channel.send(request)
        reply = channel.receive()
    except (EOFError, OSError):
        raise Failed("the code ended its process") from None
    except BadValue as error:
        raise Failed(f"the code returned {error}") from error
    if not isinstance(reply, dict):
        raise Failed("the code wrote into the answers")
    return reply


def _error(kinds: Any, says: str) -> Exception:
    """The nearest builtin class; no StopIteration, which would end a loop of the tests early."""
    for kind in kinds if isinstance(kinds, list) else ():
        made = getattr(builtins, str(kind), None)
        if made is StopIteration:
            continue
        if isinstance(made, type) and issubclass(made, Exception):
            try:
                return made(says)
            except TypeError:  # UnicodeDecodeError wants five arguments; its base does not
                continue
    return RuntimeError(f"{kinds[0]}: {says}" if kinds and isinstance(kinds, list) else says)


def _said(error: BaseException, tests: str) -> str:
    """The error in one line, with the line of the tests it came from."""
    import traceback  # slow, and most code passes or is wrong once

    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == "<tests>"]
    lines = tests.splitlines()
    number = frames[-1].lineno if frames else None
    where = f" at: {lines[number - 1].strip()}" if number and number <= len(lines) else ""
    return "".join(traceback.format_exception_only(type(error), error)).strip() + where


def _shield() -> None:
    """The other process, of the same user, must not look into this one or outlive its parent."""
    _die_with_parent()
    limit(MEMORY)  # the code may answer with what is large only here, such as a range
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _hush() -> None:
    """Standard input, output and error lead nowhere from here."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nowhere, fd)
    os.close(nowhere)


def _write(fd: int, message: Mapping[str, Any]) -> None:
    os.write(fd, json.dumps(message).encode() + b"\n")
