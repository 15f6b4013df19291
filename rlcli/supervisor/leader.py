"""The supervisor of node 0: it decides when all ranks start, start again and end."""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable
from dataclasses import replace

from rlcli.doctor.nodes.meeting import interface_of
from rlcli.errors import LaunchError, TrainingError, UsageError
from rlcli.monitor.sign import forget_signs
from rlcli.monitor.signals import BY_CTRL_C
from rlcli.place import LOOPBACK
from rlcli.supervisor.budget import Budget
from rlcli.supervisor.job import Job, Start
from rlcli.supervisor.nodes import TURN_S, OtherNodes, meet_others
from rlcli.supervisor.processes import Ranks
from rlcli.supervisor.record import Record
from rlcli.supervisor.signals import Signals
from rlcli.supervisor.watch import End, Watch

HURRIED_LEAVE_S = 0.5
"""What the other ranks get to end after a second Ctrl-C."""


def lead(
    job: Job, record: Record, *, tell: Callable[[str], None], wait: Callable[[str], None]
) -> int:
    """The exit code of the run: rank 0's, or 1 where it could not be started again any more.

    record: of a run directory that this process holds. tell: for what happens. wait: for what is
    waited for, in a line that may be rewritten.

    Raises: LaunchError where the nodes cannot start together; TrainingError where a node was lost
    and does not come back.
    """
    leader = _Leader(job, record, tell, wait)
    leader.meet()
    while True:
        with leader.signals:
            code = leader.run()
            if code is not None:
                leader.signals.ignore()
        if code is not None:
            return code
        leader.meet_again()


class _Leader:
    def __init__(
        self, job: Job, record: Record, tell: Callable[[str], None], wait: Callable[[str], None]
    ) -> None:
        self.signals = Signals()
        self._job = job
        self._record = record
        self._tell = tell
        self._wait = wait
        self._others = OtherNodes({}, silence_s=0.0)
        limits = job.limits
        self._budget = Budget(limits.relaunches, window_s=limits.window_s)
        self._relaunches = 0

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
            self._record.fail(str(error))
            raise TrainingError(f"the lost node did not come back: {error}") from error
        except BaseException:
            self._record.fail("it ended while it waited for a lost node")
            raise

    def run(self) -> int | None:
        """The exit code of the run; None where the nodes have to meet again."""
        code = 1
        try:
            while True:
                end = self._run_once()
                if end.starts_again:
                    end = self._start_again(end)
                if not end.starts_again:
                    code = end.code
                    return code
                if self._others.lost:
                    self._others.close()
                    return None
        finally:
            self._others.end(code, leave_s=0.0, is_void=self._is_void(code))

    def _run_once(self) -> End:
        start = self._next_start()
        self._record.start()
        try:
            ranks = Ranks(self._job, start)
        except OSError as error:
            raise LaunchError(
                f"the ranks cannot be started: {error.filename or start.run_dir}: {error.strerror}."
            ) from error
        try:
            watch = Watch(
                self._job,
                self._record,
                ranks,
                self._others,
                self.signals,
                tell=self._report,
            )
            self._others.start(start)
            while (end := watch.turn()) is None:
                time.sleep(TURN_S)
            if end.has_left:
                end = self._settled(end)
                self._let_leave(ranks, end.code)
        finally:
            ranks.kill()
            forget_signs(start.run_dir)
        if not end.starts_again and not end.has_left:
            end = self._settled(end)
        if not end.starts_again and self._is_void(end.code):
            ranks.logs.forget()
            self._record.clean()
        return end

    def _let_leave(self, ranks: Ranks, code: int) -> None:
        """The other ranks may end by themselves, where they have anything to end."""
        limits, is_void = self._job.limits, self._is_void(code)
        leave_s = limits.stop_s if self.signals.handed_on else limits.leave_s
        if self.signals.hurried_s:
            leave_s = HURRIED_LEAVE_S
        if is_void:
            leave_s = 0.0
        self._others.end(code, leave_s=leave_s, is_void=is_void)
        ranks.wait(leave_s, self.signals)

    def _settled(self, end: End) -> End:
        """`end` with the exit code that a scheduler is to see, told and written down."""
        if end.cause:
            self._report(end.cause)
            if not self._is_void(end.code):
                self._record.fail(end.cause)
        elif self.signals.handed_on:
            reason = BY_CTRL_C if self.signals.is_interrupt else "SIGTERM"
            if self._record.preempt(reason) and not self.signals.is_interrupt:
                return replace(end, code=self._job.preempt_exit_code)
        return end

    def _is_void(self, code: int) -> bool:
        """Whether there is nothing to keep: a run that was refused, or stopped, before it began."""
        is_over = code == UsageError.exit_code or bool(self.signals.handed_on)
        return is_over and not self._record.has_begun

    def _next_start(self) -> Start:
        here = self._others.own_address() or LOOPBACK
        return Start(
            run_dir=self._record.run_dir.path,
            address=self._meeting_place(here),
            port=free_port(here),
            resume=self._record.resume,
            relaunches=self._relaunches,
            interface=interface_of(here),
        )

    def _meeting_place(self, here: str) -> str:
        """MASTER_ADDR; `here`, where the others came, if it is of use to node 0 alone."""
        launch = self._job.launch
        if launch.nnodes == 1 or launch.master_addr is None:
            return LOOPBACK
        return here if is_loopback(launch.master_addr) else launch.master_addr

    def _start_again(self, end: End) -> End:
        """`end`, or another one that is final. All ranks of this node are gone."""
        number = self._budget.take(time.monotonic())
        most, minutes = self._budget.most, self._budget.window_s / 60
        if number is None:
            text = f"{end.cause}; giving up after {most} new starts in {minutes:g} minutes"
            return self._settled(End(code=1, cause=text))
        self._others.kill()
        for signal in self._others.poll()[1]:
            self.signals.add(signal)
        if self.signals.take():
            self._report(f"{end.cause}; not started again, as it was asked to stop")
            return self._settled(End(code=self.signals.exit_code))
        self._relaunches += 1
        step, often = self._record.step, f"{number} of {most} in {minutes:g} minutes"
        if step:
            self._report(f"{end.cause}; starting again from step {step} ({often})")
        else:
            self._report(f"{end.cause}; starting again from the beginning ({often})")
        return end

    def _report(self, text: str) -> None:
        self._tell(text)
        self._record.tell(text)


def is_loopback(host: str) -> bool:
    """Whether a machine reaches only itself there."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    addresses = [str(address[0]).partition("%")[0] for *_, address in found]
    return all(ipaddress.ip_address(address).is_loopback for address in addresses)


def free_port(address: str) -> int:
    """A port of `address` that nobody has now."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])
