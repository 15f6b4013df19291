"""Every other node: it connects to node 0, says who it is and waits for the verdict."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

from rlcli.doctor.finding import Finding, Level
from rlcli.doctor.network import within
from rlcli.doctor.nodes.meeting import Hello, Meeting, located
from rlcli.doctor.nodes.wire import VERDICT_LIMIT, Channel, StrangerError, plain, whole_number

CONNECT_LIMIT_S = 5.0
RETRY_S = 0.5
GRACE_S = 5.0
"""Node 0 may have started a little later, and is to have the last word."""
READ_S = 0.5
SILENCE_LIMIT_S = 10.0
"""Node 0 says something every second: silence for so long is somebody else's."""


class _NotYetError(Exception):
    """Node 0 cannot be spoken to now; it may start later. Args: what happened, the cure."""


def join_node_0(meeting: Meeting, own: Hello, tell: Callable[[str], None]) -> list[Finding]:
    """The verdict of node 0, or why there is none."""
    findings, channel = enter(meeting, own, tell)
    if channel is not None:
        channel.close()
    return findings


def enter(
    meeting: Meeting, own: Hello, tell: Callable[[str], None]
) -> tuple[list[Finding], Channel | None]:
    """(the verdict of node 0, the open line to it); no line where something is bad."""
    started_s = time.monotonic()
    deadline_s = started_s + meeting.timeout_s
    while True:
        try:
            return _visit(meeting, own, deadline_s=deadline_s, tell=tell)
        except _NotYetError as error:
            says, cure = error.args
        except StrangerError:
            says = f"something else than {meeting.command} listens at {meeting.place}"
            cure = "set another MASTER_PORT on every node"
            return [Finding("node 0", "bad", says, cure)], None
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            waited = f"gave up after {meeting.timeout_s:g} s"
            return [Finding("node 0", "bad", f"{says}; {waited}", cure)], None
        tell(f"waiting for node 0 ({meeting.timeout_s - left_s:.0f} s): {says}")
        time.sleep(min(RETRY_S, left_s))


def _visit(
    meeting: Meeting, own: Hello, *, deadline_s: float, tell: Callable[[str], None]
) -> tuple[list[Finding], Channel | None]:
    """Raises: _NotYetError, StrangerError."""
    channel = Channel(_connect(meeting, deadline_s), VERDICT_LIMIT)
    is_kept = False
    try:
        channel.send(located(own, channel.own_address).message())
        findings = _await_verdict(channel, meeting, deadline_s=deadline_s, tell=tell)
        is_kept = all(finding.level != "bad" for finding in findings)
    except OSError as error:
        raise _not_yet(meeting, error) from error
    finally:
        if not is_kept:
            channel.close()
    return findings, channel if is_kept else None


def _await_verdict(
    channel: Channel, meeting: Meeting, *, deadline_s: float, tell: Callable[[str], None]
) -> list[Finding]:
    """Raises: OSError, StrangerError."""
    waiting: list[int] | None = None
    heard_s = time.monotonic()
    while time.monotonic() < deadline_s + GRACE_S:
        messages = channel.read(READ_S)
        for number, message in enumerate(messages, start=1):
            heard_s = time.monotonic()
            if "verdict" in message:
                channel.unread = messages[number:]
                return _read_verdict(message["verdict"])
            waiting = _read_waiting(message)
            _tell_waiting(meeting, waiting, deadline_s, tell)
        if waiting is None and time.monotonic() - heard_s > SILENCE_LIMIT_S:
            raise StrangerError
    if not waiting:
        raise StrangerError
    return [
        Finding(
            f"node {rank}",
            "bad",
            f"did not come to node 0 within {meeting.timeout_s:g} s",
            f"start it with NODE_RANK={rank}; its own output says why it cannot connect",
        )
        for rank in waiting
    ]


def _connect(meeting: Meeting, deadline_s: float) -> socket.socket:
    """A connection to node 0. Raises: _NotYetError."""
    left_s = max(0.1, deadline_s - time.monotonic())
    try:
        found = within(
            left_s,
            lambda: socket.getaddrinfo(meeting.host, meeting.port, type=socket.SOCK_STREAM),
        )
    except (OSError, UnicodeError) as error:
        says = f"the name {meeting.host} does not resolve here"
        cure = "set MASTER_ADDR to the IP address of node 0, or add the name to /etc/hosts"
        raise _NotYetError(says, cure) from error
    problem: OSError = ConnectionRefusedError()
    for family, kind, protocol, _, address in found:
        connection = socket.socket(family, kind, protocol)
        connection.settimeout(min(CONNECT_LIMIT_S, max(0.1, deadline_s - time.monotonic())))
        try:
            connection.connect(address)
            # a socket that connects to its own port finds itself where nobody listens
            if connection.getsockname() != connection.getpeername():
                return connection
        except OSError as error:
            problem = error
        connection.close()
    raise _not_yet(meeting, problem)


def _not_yet(meeting: Meeting, error: OSError) -> _NotYetError:
    place, port = meeting.place, meeting.port
    if isinstance(error, ConnectionRefusedError):
        says = f"connection refused, nothing listens at {place}"
        cure = f"start node 0 (NODE_RANK=0 {meeting.command}); is port {port} open there?"
    elif isinstance(error, ConnectionResetError | BrokenPipeError):
        says = f"{place} closed the connection"
        cure = f"start {meeting.command} on node 0 again; what does it say?"
    elif isinstance(error, TimeoutError):
        says = f"no answer from {place}"
        cure = f"open port {port} in node 0's firewall; is MASTER_ADDR its address in this network?"
    elif error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH):
        says = f"no route to {meeting.host}"
        cure = "set MASTER_ADDR to the address of node 0 in a network this machine is part of"
    else:
        says = f"{place}: {error.strerror or type(error).__name__}"
        cure = "correct MASTER_ADDR and MASTER_PORT"
    return _NotYetError(says, cure)


def _tell_waiting(
    meeting: Meeting, waiting: Sequence[int], deadline_s: float, tell: Callable[[str], None]
) -> None:
    waited_s = meeting.timeout_s - (deadline_s - time.monotonic())
    ranks = ", ".join(str(rank) for rank in waiting)
    tell(f"connected; node 0 waits for node {ranks}/{meeting.nnodes} ({waited_s:.0f} s)")


def _read_waiting(message: dict[str, Any]) -> list[int]:
    ranks = message.get("waiting")
    if not isinstance(ranks, list):
        raise StrangerError
    return [whole_number(rank) for rank in ranks]


def _read_verdict(rows: object) -> list[Finding]:
    if not isinstance(rows, list) or not rows:
        raise StrangerError
    return [_read_finding(row) for row in rows]


def _read_finding(row: object) -> Finding:
    if not isinstance(row, dict) or row.get("level") not in ("ok", "warn", "bad"):
        raise StrangerError
    cure = row.get("cure")
    return Finding(
        plain(row.get("name")),
        cast("Level", row["level"]),
        plain(row.get("says")),
        None if cure is None else plain(cure),
    )
