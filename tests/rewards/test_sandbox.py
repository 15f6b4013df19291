"""Attacks on the sandbox: each is contained, scored as wrong, and leaves nothing behind."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from code_trials import (
    TESTS,
    alive,
    descendants,
    verdict,
    verdict_on_endless,
    watch,
)
from waiting import wait_until

from rlcli.rewards.sandbox import NoSandbox, Sandbox, SandboxFailed, check_sandbox, find_sandbox
from rlcli.rewards.sandbox.box import ENVIRONMENT


def test_right_code_passes_and_wrong_code_fails_where_the_tests_say_so(box: Sandbox) -> None:
    assert verdict(box, "def f(x): return x + 1") == (True, "")
    assert verdict(box, "def f(x): return x") == (False, "AssertionError at: assert f(2) == 3")


ATTACKS = {
    "stops the process before the tests": ("import os\nos._exit(0)", "ended its process"),
    "leaves politely before the tests": ("import sys\nsys.exit(0)", "SystemExit: 0"),
    "stops the process in a call": ("import os\ndef f(x): os._exit(0)", "ended its process"),
    "leaves in a call": ("def f(x): raise SystemExit(0)", "SystemExit: 0"),
    "is equal to everything": (
        "class Any:\n  def __eq__(self, other): return True\n"
        "  __ne__ = __lt__ = __gt__ = __contains__ = __eq__\ndef f(x): return Any()",
        "AssertionError",
    ),
    "is an int that is equal to everything": (
        "class Any(int):\n  def __eq__(self, other): return True\n"
        "  __hash__ = int.__hash__\ndef f(x): return Any()",
        "AssertionError",
    ),
    "changes what int and assert mean": (
        "import builtins\nbuiltins.AssertionError = ValueError\nbuiltins.int = lambda x: 3\n"
        "def f(x): return x",
        "",
    ),
    "prints that it passed": (
        "import os\nfor fd in range(20):\n  try: os.write(fd, b'{\"passed\": true}\\n')\n"
        "  except OSError: pass\nprint('passed')\ndef f(x): return 0",
        "",
    ),
    "walks the frames for the tests": (
        "import gc, sys\ndef f(x):\n  frame, found = sys._getframe(), []\n"
        "  while frame: found += [frame.f_globals, frame.f_locals]; frame = frame.f_back\n"
        "  wanted = '='.join(['', '', ' 3'])\n"
        "  found += gc.get_objects()\n"
        "  return 3 if any(wanted in repr(thing)[:100000] for thing in found) else 0",
        "AssertionError",
    ),
    "kills the tests": (
        "import os, signal\ndef f(x):\n  for pid in (1, os.getppid(), -1):\n"
        "    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM):\n"
        "      try: os.kill(pid, number)\n      except OSError: pass\n  return 0",
        "",
    ),
    "debugs the tests": (
        "import ctypes\ndef f(x):\n  libc = ctypes.CDLL(None, use_errno=True)\n"
        "  return 3 if libc.ptrace(16, 1, 0, 0) == 0 else 0",
        "AssertionError",
    ),
    "takes all memory": ("x = bytearray(8 << 30)", "MemoryError"),
    "takes memory bit by bit": ("x = []\nwhile True: x.append(bytearray(1 << 24))", "MemoryError"),
    "recurses without end": ("def f(x): return f(x)", "RecursionError"),
    "writes a gigabyte to the screen": (
        "import sys\nfor _ in range(1000): sys.stdout.write('x' * (1 << 20))\ndef f(x): return 0",
        "AssertionError",
    ),
    "answers with a gigabyte": ("def f(x): return 'x' * (64 << 20)", "more than 16 MiB"),
    "answers with a list in itself": (
        "def f(x):\n  a = []\n  a.append(a)\n  return a",
        "Recursion",
    ),
    "crashes": ("import ctypes\nctypes.string_at(0)", "ended its process"),
    "is no code": ("def f(x:", "SyntaxError"),
    "has other names": ("def g(x): return 3", "name 'f' is not defined"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_contained_and_wrong(box: Sandbox, attack: str) -> None:
    code, why = ATTACKS[attack]
    passed, found = verdict(box, code)
    assert not passed
    assert why in found


@pytest.mark.parametrize(
    "code",
    [
        "import time\ntime.sleep(1000)",
        "def f(x):\n  while True: pass",
        "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass",
        "import re\nre.match(r'(a+)+b', 'a' * 60)",
    ],
)
def test_what_never_ends_is_wrong_when_the_time_is_up_and_leaves_nothing(
    box: Sandbox, code: str
) -> None:
    with watch() as seen:
        found, limit_s = verdict_on_endless(box, code, seen, least=3)
    assert found == (False, f"took longer than {limit_s:g} s")
    assert len(seen) >= 3  # bwrap, the tests, the code
    wait_until(lambda: not alive(seen))


SPY = """
import os, socket, subprocess
def tried(call):
    try:
        return repr(call())
    except Exception as error:
        return "refused"
def f(x):
    return {
        "environment": sorted(os.environ),
        "roots": sorted(os.listdir("/")),
        "host file": tried(lambda: open(HOST_FILE).read()),
        "write": [tried(lambda: open(path, "w")) for path in
                  ("/new", "/usr/new", "/usr/bin/python3", "/dev/new", "/dev/shm/new")],
        "network": tried(lambda: socket.create_connection(("127.0.0.1", PORT), timeout=2)),
        "names": tried(lambda: socket.getaddrinfo("example.com", 80)),
        "user": os.getuid(),
        "mount": subprocess.call(["/usr/bin/mount", "-t", "tmpfs", "x", "/tmp"],
                                 stderr=subprocess.DEVNULL) != 0,
        "processes": tried(lambda: os.listdir("/proc")),
        "own": open("mine", "w").write("x") == 1,
    }
"""


def test_nothing_of_this_machine_can_be_read_written_or_reached(
    box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "canary-key")
    (tmp_path / "secret").write_text("canary-file")
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = f"HOST_FILE, PORT = {str(tmp_path / 'secret')!r}, {server.getsockname()[1]}\n{SPY}"
        expected = {
            "environment": sorted([*ENVIRONMENT, "PWD", *["PYTHONPATH"] * bool(box.packages)]),
            "host file": "refused",
            "write": ["refused"] * 5,
            "network": "refused",
            "names": "refused",
            "mount": True,
            "processes": "refused",
            "own": True,
        }
        tests = (
            "found = f(1)\n"
            "roots, user = found.pop('roots'), found.pop('user')\n"
            "assert user != 0 and not {'home', 'root', 'proc', 'sys', 'etc', 'var'} & set(roots)\n"
            "assert 'canary' not in repr(found)\n"
            f"assert found == {expected!r}, [k for k in found if found[k] != {expected!r}[k]]"
        )
        assert verdict(box, code, tests) == (True, "")


def test_neither_the_host_under_a_virtual_machine_nor_keyrings_are_reached(box: Sandbox) -> None:
    if platform.machine() not in ("x86_64", "aarch64"):
        pytest.skip("the numbers of system calls are known for x86_64 and aarch64")
    code = """
import ctypes, errno, platform, socket
def refused(family):
    try:
        socket.socket(family, socket.SOCK_STREAM).close()
    except OSError as error:
        return error.errno == errno.EPERM
def families(): return [refused(f) for f in (socket.AF_VSOCK, socket.AF_NETLINK, socket.AF_UNIX)]
def keyring():
    number = {"x86_64": 250, "aarch64": 219}[platform.machine()]
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.syscall(number, 0, -3, 0), ctypes.get_errno()
"""
    tests = "assert families() == [True, True, None]\nassert keyring() == (-1, 1)"
    assert verdict(box, code, tests, names=["families", "keyring"]) == (True, "")


def test_files_and_processes_of_the_code_are_few_and_small(box: Sandbox) -> None:
    code = """
import os, threading
def size(limit):
    try:
        with open("large", "wb") as file:
            for _ in range(limit): file.write(bytes(1 << 20))
    except OSError:
        return "refused"
def files(count):
    try:
        for number in range(count):
            with open(str(number), "wb") as file: file.write(bytes(8 << 20))
    except OSError:
        return number
def forks():
    count = 0
    try:
        while count < 1000:
            if os.fork() == 0:
                import time; time.sleep(60)
            count += 1
    except OSError:
        return count
"""
    tests = "assert size(100) == 'refused'\nassert files(100) <= 8\nassert forks() < 10"
    assert verdict(box, code, tests, names=["size", "files", "forks"]) == (True, "")


def test_tests_that_cannot_be_run_here_leave_the_code_unscored(box: Sandbox) -> None:
    right = "def f(x): return x + 1"
    with pytest.raises(SandboxFailed, match="the tests import no_such_module, which"):
        verdict(box, right, f"import no_such_module\n{TESTS}", modules=["no_such_module"])
    with pytest.raises(SandboxFailed, match="hand the code a function"):
        verdict(box, right, "assert f(lambda: 1) == 3")
    with pytest.raises(SandboxFailed, match="never call the code"):
        verdict(box, right, "assert True")


def test_a_sandbox_that_does_not_start_leaves_the_code_unscored(
    box: Sandbox, tmp_path: Path
) -> None:
    with pytest.raises(SandboxFailed, match="did not start"):
        verdict(replace(box, bwrap=str(tmp_path / "bwrap")), "def f(x): return 3")
    with pytest.raises(SandboxFailed, match="did not start"):
        verdict(replace(box, python="/usr/bin/no-python"), "def f(x): return 3")


def test_without_bubblewrap_it_is_refused_with_the_cure_unless_unsafe_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoSandbox) as refused:
        check_sandbox()
    said = str(refused.value).splitlines()
    assert len(said) == 3
    assert "bubblewrap (bwrap) is not on PATH" in said[0]
    assert "apt-get install bubblewrap" in said[1]
    assert "--unsafe_code_execution" in said[2]
    (note,) = check_sandbox(allows_unsafe=True)
    assert note.startswith("UNSAFE: no sandbox works here")


def test_unboxed_code_is_still_another_process_with_limits_and_a_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("OPENAI_API_KEY", "canary-key")
    loose = find_sandbox(allows_unsafe=True)
    assert loose.bwrap is None
    assert verdict(loose, "def f(x): return x + 1") == (True, "")
    assert verdict(loose, "import os\nos._exit(0)") == (False, "the code ended its process")
    assert verdict(loose, "x = bytearray(8 << 30)")[1].startswith("MemoryError")
    with watch() as seen:
        endless = "def f(x):\n  while True: pass"
        found, limit_s = verdict_on_endless(loose, endless, seen, least=2)
    assert found == (False, f"took longer than {limit_s:g} s")
    assert len(seen) >= 2
    wait_until(lambda: not alive(seen))
    assert verdict(loose, "import os\ndef f(x): return 'OPENAI_API_KEY' in os.environ") == (
        False,
        "AssertionError at: assert f(2) == 3",
    )


def test_unboxed_other_processes_of_the_user_leave_code_its_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    loose = find_sandbox(allows_unsafe=True)
    code = (
        "import threading\ndef f(x):\n  found = []\n"
        "  thread = threading.Thread(target=lambda: found.append(x + 1))\n"
        "  thread.start(); thread.join()\n  return found[0]"
    )
    others = [subprocess.Popen(["/bin/sleep", "600"], user=loose.uid) for _ in range(10)]
    try:
        assert verdict(loose, code) == (True, "")
    finally:
        for other in others:
            other.kill()
            other.wait()


def test_an_old_bubblewrap_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "bwrap"
    old.write_text("#!/bin/sh\necho usage: bwrap --unshare-all\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoSandbox, match=r"is older than 0\.8"):
        find_sandbox()


SCORER = """
import sys
from rlcli.rewards.process import ScoringProcess
process = ScoringProcess("code", timeout_s=1000)
process.wait_until_ready()
process.call({"data_source": "code", "solution_str": sys.argv[1], "ground_truth": "assert f() == 1",
              "extra_info": {}})
"""


def test_no_sandbox_outlives_a_run_that_is_killed(box: Sandbox) -> None:
    code = "```python\ndef f():\n  while True: pass\n```"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", SCORER, code]
    with subprocess.Popen(command, env=environment) as run:
        wait_until(lambda: len(descendants(run.pid)) >= 4)  # the scoring process, too
        seen = descendants(run.pid)
        run.kill()
    wait_until(lambda: not alive(seen))


def test_bubblewrap_is_what_makes_the_sandbox(box: Sandbox) -> None:
    assert box.bwrap == shutil.which("bwrap")
    assert box.uid is None or os.geteuid() == 0
