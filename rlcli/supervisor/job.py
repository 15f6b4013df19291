"""What a supervisor starts, with which limits, and how the end of a rank is told."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rlcli.checkpoint import Resume
from rlcli.errors import RankLostError
from rlcli.launch import Launch

LOST_CONTACT = RankLostError.exit_code


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Seconds that are waited, and how often a run is started again.

    meeting_s: for the other nodes. leave_s: for the other ranks, after rank 0 has ended.
    linger_s: for a better cause than a rank that ended because of another. stop_s: for ranks that
    have nothing to save, once the run was asked to stop. hurry_s: for rank 0 after a second
    Ctrl-C. silence_s: of a node that is taken for lost. sign_s: without a sign of rank 0 until it
    is told, then twice as long. stuck_s: until it is taken for lost; grace_s: the same where the
    run was asked to stop, or has ended.
    """

    meeting_s: float = 120.0
    leave_s: float = 20.0
    linger_s: float = 5.0
    stop_s: float = 2.0
    hurry_s: float = 5.0
    silence_s: float = 30.0
    sign_s: float = 60.0
    stuck_s: float = 30 * 60.0
    grace_s: float = 5 * 60.0
    relaunches: int = 3
    window_s: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The processes of this machine. facts: by name, what every node must have the same.

    env: what every rank gets beside its place, where it is not set. preempt_exit_code: of a run
    that SIGTERM stopped with a checkpoint.
    """

    command: tuple[str, ...]
    launch: Launch
    num_local: int
    facts: Mapping[str, str] = field(default_factory=dict[str, str])
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    preempt_exit_code: int = 0
    limits: Limits = field(default_factory=Limits)

    @property
    def num_ranks(self) -> int:
        """On all nodes."""
        return self.num_local * self.launch.nnodes


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One start of all ranks. address, port: where they meet; interface: the way there.

    resume: what rank 0 goes on from.
    """

    run_dir: Path
    address: str
    port: int
    resume: Resume = "no"
    relaunches: int = 0
    interface: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """How a rank ended. code: its exit code, or minus the signal. words: the last of its log."""

    rank: int
    code: int
    words: str = ""
    node: int = 0

    @property
    def is_consequence(self) -> bool:
        """Whether it ended because of another rank."""
        return self.code == LOST_CONTACT

    @property
    def is_relaunched(self) -> bool:
        """Whether a fresh start may help: it was killed, or lost contact with another rank."""
        return self.code < 0 or self.is_consequence

    @property
    def exit_code(self) -> int:
        """As a shell would tell it."""
        return 128 - self.code if self.code < 0 else self.code

    def told(self, nnodes: int) -> str:
        """`rank 1 was killed (SIGKILL)`."""
        who = f"rank {self.rank} on node {self.node}" if nnodes > 1 else f"rank {self.rank}"
        if self.code < 0:
            return f"{who} was killed ({signal_name(-self.code)})"
        if self.is_consequence:
            return f"{who} lost contact with another rank"
        return f"{who} ended with exit code {self.code}"


def signal_name(number: int) -> str:
    """SIGKILL of 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def root_cause(deaths: list[Death]) -> Death | None:
    """The death that the others follow from: a kill before an error before a lost contact.

    None where all ended well.
    """
    bad = [death for death in deaths if death.code != 0]
    return min(bad, key=lambda death: (_rank_of_cause(death), death.rank), default=None)


def _rank_of_cause(death: Death) -> int:
    if death.code < 0:
        return 0 if death.code == -signal.SIGKILL else 1
    return 3 if death.is_consequence else 2
