"""One sandbox: what it shares with this machine, and the verdict of a job that runs inside."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rlcli.errors import RewardError
from rlcli.rewards.sandbox.program import SELF_TEST, inside_program

FOLDER_BYTES = 64 << 20
LIMITS = {"AS": 1 << 30, "NPROC": 8, "FSIZE": 16 << 20, "NOFILE": 64, "CORE": 0}
"""Of each process of the model's code: memory, processes and threads of all, file, files."""
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/tmp",
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
"""All of it. A hash seed of its own would give the same code another verdict."""
SELF_TEST_LIMIT_S = 20.0


class SandboxFailed(RewardError):
    """The sandbox itself did not work: nothing is known of the code."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether the code passed every test, and where it did not."""

    passed: bool
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """Where code runs. bwrap: None runs it unboxed. uid: None is the user's own.

    mounts: arguments of bwrap for the interpreter. packages: folder with numpy, where there is one.
    """

    python: str
    bwrap: str | None
    uid: int | None = None
    mounts: tuple[str, ...] = ()
    packages: str | None = None

    def grade(self, job: Mapping[str, Any], *, limit_s: float) -> Outcome:
        """The verdict on a job; code that is still busy after `limit_s` is wrong.

        job: {"parts": sources of the model's code, "tests": source, "names": the names of the
        code that the tests use} and, as needed, {"prefix", "modules", "stdlib"}; or
        {"parts", "path": [function] or [class, method], "calls": [[arguments, result]]}; or
        {"parts", "cases": [[standard input, output]]}.

        Raises:
            SandboxFailed: it did not start, or the tests cannot be run here.
        """
        nonce = secrets.token_hex(16)
        empty = {"prefix": "", "modules": [], "stdlib": []}
        limits = self._limits(limit_s)
        sent = json.dumps({**empty, **job, "nonce": nonce, "limits": limits}).encode()
        said, complaint, is_late = self._run(sent, limit_s)
        if not said:
            late = f"no answer within {limit_s:g} s" if is_late else ""
            raise SandboxFailed(f"the sandbox did not start: {complaint or late or 'no reason'}")
        verdict = said[-1]
        if is_late:
            return Outcome(passed=False, why=f"took longer than {limit_s:g} s")
        if verdict.get("nonce") != nonce:
            return Outcome(passed=False, why="the code ended the tests")
        if "unscored" in verdict:
            raise SandboxFailed(verdict["unscored"])
        return Outcome(passed=verdict["passed"] is True, why=verdict["why"])

    def run_program(self, code: str, *, limit_s: float) -> str:
        """What a program prints, cut in the middle; it is stopped after `limit_s`.

        Raises: SandboxFailed if the sandbox did not start.
        """
        job = {"code": code, "limits": self._limits(limit_s), "limit_s": limit_s}
        sent = json.dumps(job).encode()
        said, complaint, is_late = self._run(sent, limit_s + SELF_TEST_LIMIT_S, main="script")
        if not said:
            raise SandboxFailed(f"the sandbox did not start: {complaint or 'no reason'}")
        if is_late or "output" not in said[-1]:
            return f"The program was stopped after {limit_s:g} s."
        return str(said[-1]["output"])

    def _limits(self, limit_s: float) -> dict[str, int]:
        limits = {**LIMITS, "CPU": math.ceil(limit_s) + 1}
        if self.bwrap is None or not _counts_by_namespace():
            limits["NPROC"] += _num_running(os.getuid() if self.uid is None else self.uid)
        return limits

    def test_itself(self) -> None:
        """Raises: SandboxFailed when even right code does not pass."""
        outcome = self.grade(SELF_TEST, limit_s=SELF_TEST_LIMIT_S)
        if not outcome.passed:
            raise SandboxFailed(f"right code does not pass there: {outcome.why}")

    def _run(
        self, sent: bytes, limit_s: float, *, main: str = "tester"
    ) -> tuple[list[dict[str, Any]], str, bool]:
        """(what the program inside said, its last complaint, whether the time was up)."""
        is_late = False
        with self._place() as place, self._start(place, main) as process:
            try:
                out, complaints = process.communicate(sent, timeout=limit_s)
            except subprocess.TimeoutExpired:
                is_late = True
                process.kill()
                out, complaints = process.communicate()
            finally:
                process.kill()
        said = [json.loads(line) for line in out.splitlines()]
        return said, complaints.decode(errors="replace").strip().rpartition("\n")[2], is_late

    def _start(self, place: str, main: str) -> subprocess.Popen[bytes]:
        program = [self.python, "-s", "-S", "-B", "-c", inside_program(main)]
        try:
            return subprocess.Popen(
                [*self._box(), *program] if self.bwrap else program,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=place,
                env={} if self.bwrap else self._environment(place),
                user=self.uid,
                group=self.uid,
                extra_groups=None if self.uid is None else [],
            )
        except OSError as error:
            raise SandboxFailed(f"the sandbox did not start: {error}") from error

    def _box(self) -> list[str]:
        """The command line of bwrap: nothing is shared but /usr and the interpreter, to read."""
        environment = self._environment("/tmp")
        given = [word for name, value in environment.items() for word in ("--setenv", name, value)]
        return [
            self.bwrap or "",
            *("--unshare-user", "--unshare-all", "--disable-userns", "--die-with-parent"),
            *("--new-session", "--as-pid-1", "--cap-drop", "ALL", "--hostname", "sandbox"),
            *self.mounts,
            *("--dev", "/dev", "--size", str(FOLDER_BYTES), "--tmpfs", "/tmp"),
            *("--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp"),
            *("--clearenv", *given, "--"),
        ]

    def _environment(self, home: str) -> dict[str, str]:
        found = {"PYTHONPATH": self.packages} if self.packages else {}
        return {**ENVIRONMENT, "HOME": home, **found}

    @contextmanager
    def _place(self) -> Iterator[str]:
        """The working directory: of bwrap the root, unboxed a folder that is removed afterwards."""
        if self.bwrap:
            yield "/"
            return
        folder = tempfile.mkdtemp(prefix="rlcli-code-")
        try:
            if self.uid is not None:
                os.chown(folder, self.uid, self.uid)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@cache
def _counts_by_namespace() -> bool:
    """Whether RLIMIT_NPROC counts in a user namespace of its own only: Linux 5.14 and later."""
    found = re.match(r"(\d+)\.(\d+)", platform.release())
    return found is not None and (int(found[1]), int(found[2])) >= (5, 14)


def _num_running(uid: int) -> int:
    """Processes and threads of a user: where the limit counts all, those are no fault of code."""
    count = 0
    for file in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):
            status = file.read_text(errors="replace")
            owner = re.search(r"^Uid:\t(\d+)", status, re.MULTILINE)
            threads = re.search(r"^Threads:\t(\d+)", status, re.MULTILINE)
            if owner and threads and int(owner[1]) == uid:
                count += int(threads[1])
    return count
