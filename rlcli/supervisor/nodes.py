"""The other supervisors: met before ranks start, then spoken to on the lines of the meeting."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rlcli.doctor.finding import Finding
from rlcli.doctor.nodes.meeting import Meeting, own_hello
from rlcli.doctor.nodes.node0 import gather
from rlcli.doctor.nodes.others import enter
from rlcli.doctor.nodes.wire import Channel, StrangerError, plain, whole_number
from rlcli.errors import LaunchError
from rlcli.supervisor.job import Death, Job, Start

COMMAND = "rlcli train"
PACKAGES = ("torch", "transformers", "deepspeed")
HELLO_LIMIT = 1 << 18
BEAT_S = 1.0
TURN_S = 0.05
KILL_LIMIT_S = 15.0
"""Seconds that a node has to say that its ranks are gone."""
GOODBYE_LIMIT_S = 5.0
"""Seconds that a node has to hang up when it was told to end."""
SHOWN_CAUSES = 2


def meet_others(job: Job, tell: Callable[[str], None]) -> dict[int, Channel]:
    """Node 0's lines to all other nodes, which agree with it.

    Raises: LaunchError, after every node that came has been told the same.
    """
    meeting = meeting_of(job)
    findings, channels = gather(meeting, own_hello(meeting, PACKAGES, job.facts), tell)
    refuse(findings, meeting.nnodes)
    return channels


def join(job: Job, tell: Callable[[str], None]) -> Channel:
    """Another node's line to node 0. Raises: LaunchError."""
    meeting = meeting_of(job)
    findings, channel = enter(meeting, own_hello(meeting, PACKAGES, job.facts), tell)
    refuse(findings, meeting.nnodes)
    if channel is None:
        raise LaunchError("node 0 closed the connection. Start all nodes again.")
    return channel


def meeting_of(job: Job) -> Meeting:
    """Where and when the supervisors meet."""
    launch = job.launch
    return Meeting(
        rank=launch.node_rank,
        nnodes=launch.nnodes,
        host=launch.master_addr or "",
        port=launch.master_port,
        timeout_s=job.limits.meeting_s,
        command=COMMAND,
        listens_anywhere=launch.is_pod,
        hello_limit=HELLO_LIMIT,
    )


def refuse(findings: Sequence[Finding], nnodes: int) -> None:
    """Raises: LaunchError in three lines where something is bad."""
    bad = [finding for finding in findings if finding.level == "bad"]
    if not bad:
        return
    causes = "; ".join(f"{finding.name}: {finding.says}" for finding in bad[:SHOWN_CAUSES])
    if bad[SHOWN_CAUSES:]:
        causes += f"; and {', '.join(finding.name for finding in bad[SHOWN_CAUSES:][:5])}"
    raise LaunchError(
        f"these {nnodes} nodes cannot train together: {causes}.\nWhat to do: {bad[0].cure}"
    )


class OtherNodes:
    """Every other node as node 0 sees it. lost: why a node is not there any more, by number."""

    def __init__(self, channels: Mapping[int, Channel], *, silence_s: float) -> None:
        self.lost: dict[int, str] = {}
        self._channels = dict(channels)
        self._silence_s = silence_s
        self._heard_s = dict.fromkeys(channels, time.monotonic())
        self._beat_s = 0.0
        self._signals: list[int] = []

    def start(self, start: Start) -> None:
        """Have every node start its ranks."""
        told = {"run_dir": str(start.run_dir), "port": start.port, "relaunches": start.relaunches}
        self._say({"start": told})

    def poll(self) -> tuple[list[Death], list[int]]:
        """(ends of ranks, signals) that the nodes have told since the last call."""
        deaths: list[Death] = []
        now_s = time.monotonic()
        if now_s - self._beat_s >= BEAT_S:
            self._beat_s = now_s
            self._say({"beat": 0})
        for node, message in self._heard():
            try:
                if "died" in message:
                    deaths.append(read_death(message["died"], node))
                self._keep_signal(message)
            except StrangerError:
                self._lose(node, "it does not speak like a node")
        signals, self._signals = self._signals, []
        return deaths, signals

    def kill(self) -> None:
        """Have every node end its ranks at once, and wait until they are gone."""
        self._say({"kill": 0})
        left = set(self._channels)
        deadline_s = time.monotonic() + KILL_LIMIT_S
        while left and time.monotonic() < deadline_s:
            for node, message in self._heard():
                if "killed" in message:
                    left.discard(node)
                with suppress(StrangerError):
                    self._keep_signal(message)
            left &= self._channels.keys()
            time.sleep(TURN_S)
        for node in left:
            self._lose(node, "it does not answer")

    def end(self, code: int, *, leave_s: float, is_void: bool) -> None:
        """Have every node end with `code`, its ranks within leave_s.

        is_void: no run has begun, and none is to be seen afterwards.
        """
        leave_ms = int(leave_s * 1000)
        self._say({"end": {"code": code, "leave_ms": leave_ms, "is_void": is_void}})
        self._await_goodbyes()
        self.close()

    def _await_goodbyes(self) -> None:
        """Whoever speaks to a closed line takes that for a lost node, and never reads the end."""
        for channel in self._channels.values():
            with suppress(OSError):
                channel.finish()
        deadline_s = time.monotonic() + GOODBYE_LIMIT_S
        for channel in self._channels.values():
            with suppress(OSError, StrangerError):  # the end of the line is one
                while (left_s := deadline_s - time.monotonic()) > 0:
                    channel.read(left_s)

    def close(self) -> None:
        """Hang up; nodes that were not told to end will come to the next meeting."""
        for channel in self._channels.values():
            channel.close()
        self._channels.clear()

    def own_address(self) -> str | None:
        """The address of node 0 on the way to the others."""
        return next((channel.own_address for channel in self._channels.values()), None)

    def _keep_signal(self, message: dict[str, Any]) -> None:
        """Raises: StrangerError."""
        if "signal" in message:
            self._signals.append(whole_number(message["signal"]))

    def _say(self, message: dict[str, Any]) -> None:
        for node, channel in list(self._channels.items()):
            try:
                channel.send(message)
            except OSError:
                self._lose(node, "its connection is closed")

    def _heard(self) -> list[tuple[int, dict[str, Any]]]:
        found: list[tuple[int, dict[str, Any]]] = []
        now_s = time.monotonic()
        for node, channel in list(self._channels.items()):
            try:
                messages = channel.read()
            except (OSError, StrangerError):
                self._lose(node, "its connection is closed")
                continue
            found += [(node, message) for message in messages]
            if messages:
                self._heard_s[node] = now_s
            elif now_s - self._heard_s[node] > self._silence_s:
                self._lose(node, f"no word from it for {self._silence_s:g} s")
        return found

    def _lose(self, node: int, why: str) -> None:
        self.lost[node] = why
        if node in self._channels:
            self._channels.pop(node).close()


def tell_death(death: Death) -> dict[str, Any]:
    """As it is sent."""
    signal = max(0, -death.code)
    told = {"rank": death.rank, "exit": max(0, death.code), "signal": signal, "words": death.words}
    return {"died": told}


def read_death(said: object, node: int) -> Death:
    """Raises: StrangerError."""
    if not isinstance(said, dict):
        raise StrangerError
    return Death(
        rank=whole_number(said.get("rank")),
        code=whole_number(said.get("exit")) - whole_number(said.get("signal")),
        words=plain(said.get("words")),
        node=node,
    )


def read_start(said: object, address: str, interface: str) -> Start:
    """Raises: StrangerError."""
    if not isinstance(said, dict) or not isinstance(said.get("run_dir"), str):
        raise StrangerError
    return Start(
        run_dir=Path(said["run_dir"]),
        address=address,
        port=whole_number(said.get("port")),
        relaunches=whole_number(said.get("relaunches")),
        interface=interface,
    )
