"""The supervisor of node 0: it decides when all ranks start, start again and end."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from rlcli.checkpoint import saved_steps
from rlcli.doctor.nodes.meeting import interface_of
from rlcli.errors import LaunchError, TrainingError, UsageError
from rlcli.monitor.run_dir import RunDir, is_run
from rlcli.place import LOOPBACK, log_path
from rlcli.supervisor.budget import Budget
from rlcli.supervisor.job import Job, Start
from rlcli.supervisor.nodes import TURN_S, OtherNodes, meet_others
from rlcli.supervisor.processes import Ranks
from rlcli.supervisor.signals import Signals
from rlcli.supervisor.watch import End, Watch

HURRIED_LEAVE_S = 0.5
"""What the other ranks get to end after a second Ctrl-C."""


def lead(
    job: Job, run_dir: Path, *, tell: Callable[[str], None], wait: Callable[[str], None]
) -> int:
    """The exit code of the run: rank 0's, or 1 where it could not be started again any more.

    tell: for what happens. wait: for what is waited for, in a line that may be rewritten.

    Raises: LaunchError where the nodes cannot start together; TrainingError where a node was lost
    and does not come back.
    """
    leader = _Leader(job, RunDir(run_dir), tell, wait)
    leader.meet()
    while True:
        with leader.signals:
            code = leader.run()
        if code is not None:
            return code
        leader.meet_again()


class _Leader:
    def __init__(
        self, job: Job, run_dir: RunDir, tell: Callable[[str], None], wait: Callable[[str], None]
    ) -> None:
        self.signals = Signals()
        self._job = job
        self._run_dir = run_dir
        self._tell = tell
        self._wait = wait
        self._others = OtherNodes({}, silence_s=0.0)
        limits = job.limits
        self._budget = Budget(limits.relaunches, window_s=limits.window_s)
        self._relaunches = 0
        parents = [run_dir.path, *run_dir.path.parents]
        self._made = [folder for folder in parents if not folder.exists()]

    def meet(self) -> None:
        """Hold a meeting of all nodes, where there are several."""
        if self._job.launch.nnodes > 1:
            channels = meet_others(self._job, self._wait)
            self._others = OtherNodes(channels, silence_s=self._job.limits.silence_s)
            self._wait("")

    def meet_again(self) -> None:
        """The same after a node was lost; the others come by themselves."""
        try:
            self.meet()
        except LaunchError as error:
            self._write_failed(str(error))
            raise TrainingError(f"the lost node did not come back: {error}") from error
        except BaseException:
            self._write_failed("it ended while it waited for a lost node")
            raise

    def run(self) -> int | None:
        """The exit code of the run; None where the nodes have to meet again."""
        code = 1
        try:
            while True:
                end = self._run_once()
                if not (end.starts_again and self._starts_again(end)):
                    code = end.code
                    return code
                if self._others.lost:
                    self._others.close()
                    return None
        finally:
            self._others.end(code, leave_s=0.0)
            if code == UsageError.exit_code and not is_run(self._run_dir.path):
                self._leave_nothing()

    def _leave_nothing(self) -> None:
        """A start that was refused leaves no trace."""
        for rank in range(1, self._job.num_local):
            log_path(self._run_dir.path, rank).unlink(missing_ok=True)
        with suppress(OSError):
            for folder in self._made:
                folder.rmdir()

    def _run_once(self) -> End:
        start = self._next_start()
        try:
            ranks = Ranks(self._job, start)
        except OSError as error:
            raise LaunchError(
                f"the ranks cannot be started: {error.filename or start.run_dir}: {error.strerror}."
            ) from error
        try:
            watch = Watch(self._job, self._run_dir, ranks, self._others, self.signals)
            self._others.start(start)
            while (end := watch.turn()) is None:
                time.sleep(TURN_S)
            if end.has_left:
                leave_s = HURRIED_LEAVE_S if self.signals.hurried_s else self._job.limits.leave_s
                self._others.end(end.code, leave_s=leave_s)
                ranks.wait(leave_s)
        finally:
            ranks.kill()
        if end.cause and not end.starts_again:
            self._report(end.cause)
            self._write_failed(end.cause)
        return end

    def _next_start(self) -> Start:
        launch = self._job.launch
        here = self._others.own_address() or LOOPBACK
        return Start(
            run_dir=self._run_dir.path,
            address=launch.master_addr if launch.nnodes > 1 and launch.master_addr else LOOPBACK,
            port=free_port(here),
            relaunches=self._relaunches,
            interface=interface_of(here),
        )

    def _starts_again(self, end: End) -> bool:
        """Whether the budget allows it. All ranks are gone then."""
        number = self._budget.take(time.monotonic())
        most, minutes = self._budget.most, self._budget.window_s / 60
        if number is None:
            text = f"{end.cause}; giving up after {most} new starts in {minutes:g} minutes"
            self._report(text)
            self._write_failed(text)
            return False
        self._others.kill()
        self._relaunches += 1
        steps = saved_steps(self._run_dir.checkpoints)
        often = f"{number} of {most} in {minutes:g} minutes"
        if steps:
            self._report(f"{end.cause}; starting again from step {max(steps)} ({often})")
        else:
            self._report(f"{end.cause}; starting again from the beginning ({often})")
        return True

    def _report(self, text: str) -> None:
        self._tell(text)
        with suppress(OSError):
            if self._run_dir.console_log.is_file():
                with self._run_dir.console_log.open("a", encoding="utf-8") as log:
                    log.write(f"{text}\n")

    def _write_failed(self, reason: str) -> None:
        """A run that nobody goes on with is not left `running`."""
        status = self._run_dir.status()
        if status is None or status["state"] != "running":
            return
        with suppress(OSError):
            self._run_dir.write_status(
                "failed",
                status["step"],
                resumable=self._run_dir.has_checkpoint,
                reason=reason,
                num_steps=status.get("num_steps"),
            )


def free_port(address: str) -> int:
    """A port of `address` that nobody has now."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])
