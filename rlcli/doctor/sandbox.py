"""Check whether model-written code can run in a sandbox here."""

from __future__ import annotations

import platform
import subprocess
import sys

from rlcli.rewards.sandbox import NoSandbox, find_sandbox
from rlcli.rewards.sandbox.finding import SWITCHES, forbidding, kernel_cure
from rlcli.system.finding import Finding

LIMIT_S = 5.0
ENTER_NAMESPACE = """
import ctypes, os, sys
user, mount = 0x10000000, 0x00020000
uid, libc = os.getuid(), ctypes.CDLL(None, use_errno=True)
def enter(flag):
    if libc.unshare(flag):
        sys.exit(os.strerror(ctypes.get_errno()))
enter(user)
try:
    open("/proc/self/setgroups", "w").write("deny")
    open("/proc/self/uid_map", "w").write(f"0 {uid} 1")
except OSError as error:
    sys.exit(error.strerror)
enter(mount)
"""


def sandbox_findings() -> list[Finding]:
    """User namespaces, and bubblewrap, which builds the sandbox from them."""
    if platform.system() != "Linux":
        says = "there is no sandbox for code on this system; code rewards need Linux"
        return [Finding("sandbox", "warn", says)]
    entering = _failure([sys.executable, "-I", "-S", "-c", ENTER_NAMESPACE])
    return [namespace_finding(forbidding(), entering), sandbox_finding()]


def _failure(command: list[str]) -> str | None:
    """Last output line of a failed command; None if it succeeded."""
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT_S, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {LIMIT_S:g} s"
    except OSError as error:
        return error.strerror or type(error).__name__
    if answer.returncode == 0:
        return None
    return answer.stderr.strip().rsplit("\n", 1)[-1] or f"exit code {answer.returncode}"


def namespace_finding(forbidden: list[str], failure: str | None) -> Finding:
    """`forbidden`: kernel settings that prevent namespaces. `failure`: error on entering one."""
    name = "user namespaces"
    if failure is None:
        return Finding(name, "ok", "this user can enter one")
    off = f" ({forbidden[0]} is {SWITCHES[forbidden[0]][0]})" if forbidden else ""
    return Finding(name, "warn", f"cannot be entered: {failure}{off}", kernel_cure(forbidden))


def sandbox_finding() -> Finding:
    """Whether code runs in a sandbox here, tested in the same way as in training."""
    name = "sandbox"
    try:
        sandbox = find_sandbox()
    except NoSandbox as refusal:
        says = f"code that a model wrote cannot be run safely: {refusal.problem}"
        return Finding(name, "warn", says, refusal.cure)
    return Finding(name, "ok", f"{sandbox.bwrap} runs {sandbox.python} with nothing shared")
