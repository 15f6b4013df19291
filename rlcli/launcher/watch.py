"""Watches one start of all ranks, in the agent of rank 0, until its outcome is known."""

from __future__ import annotations

import time
from collections.abc import Callable

from rlcli.launcher.job import Death, End, Job, root_cause
from rlcli.launcher.nodes import Nodes
from rlcli.launcher.processes import Processes
from rlcli.launcher.record import Record
from rlcli.launcher.signals import Signals
from rlcli.run_dir.heartbeat import LOOK_EVERY_S, Silence
from rlcli.system.signals import INTERRUPTED


class Watch:
    """Decides when and how a start of the ranks has ended. report: shows that rank 0 is silent."""

    def __init__(
        self,
        job: Job,
        record: Record,
        ranks: Processes,
        nodes: Nodes | None,
        signals: Signals,
        *,
        report: Callable[[str], None],
    ) -> None:
        self._job = job
        self._record = record
        self._ranks = ranks
        self._nodes = nodes
        self._signals = signals
        self._report = report
        self._silence: Silence | None = None
        self._next_report_s = job.limits.sign_s
        self._deaths: list[Death] = []
        self._first_bad_s: float | None = None

    def turn(self) -> End | None:
        """The end, once it is known."""
        if self._nodes is not None:
            deaths, signals = self._nodes.received()
            self._deaths += deaths
            for number in signals:
                self._signals.add(number)
        for number in self._signals.take():
            self._ranks.signal_rank_0(number)
        self._deaths += self._ranks.deaths(self._record.path)
        if self._first_bad_s is None and root_cause(self._deaths) is not None:
            self._first_bad_s = time.monotonic()
        if self._signals.hurried_s > self._job.limits.hurry_s:
            code = self._promised()
            code = INTERRUPTED if code is None else code
            return End(code=code, cause="rank 0 did not end at the second Ctrl-C")
        if self._signals.asked_s > self._job.limits.stop_s and not self._record.has_started:
            return End(code=self._signals.exit_code)
        return self._end_of_rank_0() or self._end_of_others() or self._end_of_silence()

    def _end_of_rank_0(self) -> End | None:
        """The end, if rank 0 exited on its own or from a forwarded signal."""
        zero = next((death for death in self._deaths if death.rank == 0), None)
        if zero is None:
            return None
        promised = self._promised() if zero.is_restarted else zero.code
        if promised is None and -zero.code not in self._signals.handed_on:
            return None
        code = zero.exit_code if promised is None else promised
        others = [death for death in self._deaths if death.rank > 0]
        root = root_cause(others) if code else None
        # rank 0 reports an error that all ranks share or that another rank posted
        is_known = root is None or (root.code > 0 and promised is not None) or root.is_consequence
        cause = "" if root is None or is_known else root.describe(self._num_nodes)
        return End(code=code, cause=cause, has_left=True)

    def _promised(self) -> int | None:
        """Exit code for the final state that rank 0 has recorded; None before that."""
        return self._record.exit_code(self._job.preempt_exit_code)

    def _end_of_others(self) -> End | None:
        """The end, if a rank or a node that rank 0 still needs is gone."""
        if self._nodes is not None:
            for node, why in self._nodes.lost.items():
                return self._lost(f"node {node} is lost: {why}")
        root = root_cause(self._deaths)
        if root is None or self._first_bad_s is None:
            return None
        if time.monotonic() - self._first_bad_s < self._patience_s(root):
            return None
        if root.is_restarted:
            return self._lost(root.describe(self._num_nodes))
        return End(code=root.exit_code, cause=root.describe(self._num_nodes))

    def _patience_s(self, root: Death) -> float:
        """How long to wait for a better cause than `root`, or for rank 0 to end by itself."""
        limits = self._job.limits
        has_zero = any(death.rank == 0 for death in self._deaths)
        if not has_zero and self._record.has_started and self._record.has_ended:
            return limits.leave_s
        if root.code < 0:
            return 0.0
        if root.is_consequence and self._nodes is not None:
            return limits.linger_s + limits.silence_s  # until a lost node is known as lost
        return limits.linger_s

    def _end_of_silence(self) -> End | None:
        """The end, if rank 0 is suspended or so stuck that no thread gives a sign of life."""
        if self._record.path is None or any(death.rank == 0 for death in self._deaths):
            return None
        limits = self._job.limits
        if self._silence is None:
            look_every_s = min(LOOK_EVERY_S, limits.sign_s / 4)
            self._silence = Silence(self._record.path, look_every_s=look_every_s)
        self._silence.look()
        seconds = self._silence.seconds
        if seconds < limits.sign_s:
            self._next_report_s = limits.sign_s
            return None
        text = f"rank 0 has given no sign for {seconds:.0f} s"
        code = self._promised()
        is_over = code is not None or bool(self._signals.handed_on)
        if seconds >= (limits.grace_s if is_over else limits.stuck_s):
            return self._lost(text) if code is None else End(code=code, cause=text, has_left=True)
        if seconds >= self._next_report_s:
            self._next_report_s = 2 * seconds
            self._report(text)
        return None

    def _lost(self, cause: str) -> End:
        """A restart, unless the run was asked to stop."""
        if not self._signals.handed_on:
            return End(code=1, cause=cause, starts_again=True)
        code = INTERRUPTED if self._signals.is_interrupt else 1
        return End(code=code, cause=f"{cause}; not started again, as it was asked to stop")

    @property
    def _num_nodes(self) -> int:
        return self._job.launch.nnodes
