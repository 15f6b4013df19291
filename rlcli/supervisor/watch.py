"""One start of all ranks, from its first moment until it is clear how it ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from rlcli.monitor.sign import LOOK_EVERY_S, Silence
from rlcli.monitor.signals import INTERRUPTED
from rlcli.supervisor.job import Death, Job, root_cause
from rlcli.supervisor.nodes import OtherNodes
from rlcli.supervisor.processes import Ranks
from rlcli.supervisor.record import Record
from rlcli.supervisor.signals import Signals


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How one start of all ranks ended. cause: empty where rank 0 has said it itself.

    has_left: rank 0 has ended by itself, so that the others get time to do so too.
    """

    code: int
    cause: str = ""
    starts_again: bool = False
    has_left: bool = False


class Watch:
    """The ends of ranks so far, and what follows from them. tell: for a rank 0 that is silent."""

    def __init__(
        self,
        job: Job,
        record: Record,
        ranks: Ranks,
        others: OtherNodes,
        signals: Signals,
        *,
        tell: Callable[[str], None],
    ) -> None:
        self._job = job
        self._record = record
        self._ranks = ranks
        self._others = others
        self._signals = signals
        self._tell = tell
        look_every_s = min(LOOK_EVERY_S, job.limits.sign_s / 4)
        self._silence = Silence(record.run_dir.path, look_every_s=look_every_s)
        self._next_word_s = job.limits.sign_s
        self._deaths: list[Death] = []
        self._first_bad_s: float | None = None

    def turn(self) -> End | None:
        """The end, once it is known."""
        told, signals = self._others.poll()
        for number in signals:
            self._signals.add(number)
        for number in self._signals.take():
            self._ranks.ask_rank_0(number)
        self._deaths += [*self._ranks.deaths(), *told]
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
        """Where it ended by itself, or by a signal that it was to have."""
        zero = next((death for death in self._deaths if death.rank == 0), None)
        if zero is None:
            return None
        promised = self._promised() if zero.is_relaunched else zero.code
        if promised is None and -zero.code not in self._signals.handed_on:
            return None
        code = zero.exit_code if promised is None else promised
        others = [death for death in self._deaths if death.rank > 0]
        root = root_cause(others) if code else None
        # an error that ranks share, or that another told it, rank 0 has said
        is_said = root is None or (root.code > 0 and promised is not None) or root.is_consequence
        cause = "" if root is None or is_said else self._told(root)
        return End(code=code, cause=cause, has_left=True)

    def _promised(self) -> int | None:
        """The exit code that goes with how the run ended, as rank 0 wrote it down."""
        return self._record.exit_code(self._job.preempt_exit_code)

    def _end_of_others(self) -> End | None:
        """Where a rank or a node is gone that rank 0 still needs."""
        for node, why in self._others.lost.items():
            return self._lost(f"node {node} is lost: {why}")
        root = root_cause(self._deaths)
        if root is None or self._first_bad_s is None:
            return None
        waited_s = time.monotonic() - self._first_bad_s
        limits = self._job.limits
        has_zero = any(death.rank == 0 for death in self._deaths)
        if not has_zero and self._record.has_started and self._record.has_ended:
            limit_s = limits.leave_s
        else:
            limit_s = 0.0 if root.code < 0 else limits.linger_s
        if waited_s < limit_s:
            return None
        if root.is_relaunched:
            return self._lost(self._told(root))
        return End(code=root.exit_code, cause=self._told(root))

    def _end_of_silence(self) -> End | None:
        """Where rank 0 is stopped, or hangs whole: its threads give no sign either."""
        if any(death.rank == 0 for death in self._deaths):
            return None
        self._silence.look()
        limits, seconds = self._job.limits, self._silence.seconds
        if seconds < limits.sign_s:
            self._next_word_s = limits.sign_s
            return None
        text = f"rank 0 has given no sign for {seconds:.0f} s"
        code = self._promised()
        is_over = code is not None or bool(self._signals.handed_on)
        if seconds >= (limits.grace_s if is_over else limits.stuck_s):
            return self._lost(text) if code is None else End(code=code, cause=text, has_left=True)
        if seconds >= self._next_word_s:
            self._next_word_s = 2 * seconds
            self._tell(text)
        return None

    def _lost(self, cause: str) -> End:
        """The run is started again, unless it was asked to stop."""
        if not self._signals.handed_on:
            return End(code=1, cause=cause, starts_again=True)
        code = INTERRUPTED if self._signals.is_interrupt else 1
        return End(code=code, cause=f"{cause}; not started again, as it was asked to stop")

    def _told(self, death: Death) -> str:
        who = death.told(self._job.launch.nnodes)
        return f"{who}; its last words: {death.words}" if death.words else who
