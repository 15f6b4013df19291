"""The job of an agent, its limits, and how ranks end."""

from __future__ import annotations

import signal
from collections import deque
from dataclasses import dataclass, field

from rlcli.distributed.rank_env import NodeEnv
from rlcli.errors import RankLostError

LOST_CONTACT = RankLostError.exit_code


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Timeouts in seconds, and how often a run is restarted.

    meeting_s: wait for the other nodes. last_call_s: wait for more nodes than train.min_nodes.
    leave_s: wait for the other ranks after rank 0 has ended. linger_s: wait for a better cause
    than the first error. stop_s: wait for ranks that have nothing to save, once the run was asked
    to stop. hurry_s: wait for rank 0 after a second Ctrl-C. silence_s: a node without heartbeats
    for so long is lost. sign_s: rank 0's silence is reported after so long, then whenever it has
    doubled. stuck_s: a silent rank 0 counts as lost after so long; grace_s: the same once the run
    was asked to stop or has ended.
    """

    meeting_s: float = 120.0
    last_call_s: float = 30.0
    leave_s: float = 20.0
    linger_s: float = 5.0
    stop_s: float = 2.0
    hurry_s: float = 5.0
    silence_s: float = 20.0
    sign_s: float = 60.0
    stuck_s: float = 30 * 60.0
    grace_s: float = 5 * 60.0
    restarts: int = 3
    window_s: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The processes of this machine.

    preempt_exit_code: of a run that SIGTERM stopped with a checkpoint.
    """

    command: tuple[str, ...]
    launch: NodeEnv
    num_local: int
    preempt_exit_code: int = 0
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """How a rank ended. code: its exit code, or minus the signal. words: its last log lines."""

    rank: int
    code: int
    words: str = ""
    node: int = 0

    @property
    def is_consequence(self) -> bool:
        """Whether it ended because of another rank."""
        return self.code == LOST_CONTACT

    @property
    def is_restarted(self) -> bool:
        """Whether a restart may help: it was killed, or lost contact with another rank."""
        return self.code < 0 or self.is_consequence

    @property
    def exit_code(self) -> int:
        """The code that a shell would show."""
        return 128 - self.code if self.code < 0 else self.code

    def describe(self, nnodes: int) -> str:
        """`rank 1 was killed (SIGKILL); its last words: ...`."""
        who = f"rank {self.rank} on node {self.node}" if nnodes > 1 else f"rank {self.rank}"
        if self.code < 0:
            text = f"{who} was killed ({signal_name(-self.code)})"
        elif self.is_consequence:
            text = f"{who} lost contact with another rank"
        else:
            text = f"{who} ended with exit code {self.code}"
        return f"{text}; its last words: {self.words}" if self.words else text


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How one start of all ranks ended. cause: empty if rank 0 has already reported it.

    has_left: rank 0 exited on its own, so the others get time to do so too.
    """

    code: int
    cause: str = ""
    starts_again: bool = False
    has_left: bool = False


class RestartBudget:
    """At most `most` restarts in any window_s seconds."""

    def __init__(self, most: int, *, window_s: float) -> None:
        self.most = most
        self.window_s = window_s
        self._taken_s: deque[float] = deque()

    def take(self, now_s: float) -> int | None:
        """Restarts used in this window, this one included; None at the limit."""
        while self._taken_s and now_s - self._taken_s[0] >= self.window_s:
            self._taken_s.popleft()
        if len(self._taken_s) >= self.most:
            return None
        self._taken_s.append(now_s)
        return len(self._taken_s)


def signal_name(number: int) -> str:
    """SIGKILL for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def root_cause(deaths: list[Death]) -> Death | None:
    """The likely cause of all others: a kill before an error, an error before a lost contact.

    None if every exit code is 0.
    """
    bad = [death for death in deaths if death.code != 0]
    return min(bad, key=lambda death: (_order(death), death.rank), default=None)


def _order(death: Death) -> int:
    if death.code < 0:
        return 0 if death.code == -signal.SIGKILL else 1
    return 3 if death.is_consequence else 2
