"""`pytest --fast`: leaves out every test that starts a process or trains, when it does so.

No list to keep: a process is refused as it starts and a training as it begins, and the test that
wanted it is reported as skipped. Tests that compute for more than about 2 s carry the mark `slow`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

STARTED = "starts a process"
TRAINS = "trains"
SLOW = "marked slow"
SHELLS = ("bash", "sh")


class FastSelection:
    """The plugin; one in every worker, and one in the process that prints."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.refused = ""
        """Why the test that runs now is left out, if it is."""
        self.left_out: Counter[str] = Counter()
        self.patch = pytest.MonkeyPatch()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            if item.get_closest_marker("slow") is not None:
                item.add_marker(pytest.mark.skip(reason=SLOW))

    def pytest_sessionstart(self) -> None:
        if hasattr(self.config, "workerinput") or not self.config.getoption("numprocesses", None):
            self._patch()

    def _patch(self) -> None:
        from rlcli.trainer import loop, session

        start = subprocess.Popen.__init__

        def start_or_refuse(process: Any, args: Any, *more: Any, **named: Any) -> None:
            # whoever waits for another thread would wait for ever, were it refused something
            is_main = threading.current_thread() is threading.main_thread()
            if is_main and (is_python_or_shell(args) or named.get("shell")):
                self._refuse(STARTED)
            start(process, args, *more, **named)

        def refuse_training(*_: Any, **__: Any) -> NoReturn:
            self._refuse(TRAINS)

        self.patch.setattr(subprocess.Popen, "__init__", start_or_refuse)
        # a process that never started has nothing to clean up
        self.patch.setattr(subprocess.Popen, "_child_created", False)
        self.patch.setattr(session, "_run", refuse_training)
        self.patch.setattr(loop, "_train", refuse_training)

    def _refuse(self, reason: str) -> NoReturn:
        self.refused = reason
        pytest.skip(reason)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        self.refused = ""

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Iterator[None]:
        """A test that was refused something is skipped, whatever it made of the refusal."""
        outcome: Any = yield
        report = outcome.get_result()
        if self.refused and (report.when != "teardown" or report.failed):
            path, line, _ = item.location
            report.outcome = "skipped"
            report.longrepr = (path, line or 0, f"Skipped: {self.refused}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and isinstance(report.longrepr, tuple):
            reason = report.longrepr[2].removeprefix("Skipped: ")
            if reason in (STARTED, TRAINS, SLOW) and report.when != "teardown":
                self.left_out[reason] += 1

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        counts = ", ".join(f"{count} {reason}" for reason, count in self.left_out.most_common())
        terminalreporter.write_line(f"--fast left out: {counts or 'nothing'}")

    def pytest_unconfigure(self) -> None:
        self.patch.undo()


def is_python_or_shell(args: Any) -> bool:
    """Whether a command starts Python, in a sandbox too, or a shell."""
    words = [args] if isinstance(args, (str, bytes, Path)) else [*args]
    names = [os.path.basename(os.fsdecode(word)) for word in words]
    python = {os.path.basename(sys.executable), "python", "python3"}
    return names[0] in SHELLS or any(name in python for name in names)
