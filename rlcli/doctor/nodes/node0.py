"""Node 0: it listens, hears every node once, and tells them all the verdict."""

from __future__ import annotations

import errno
import selectors
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rlcli.doctor.finding import Finding
from rlcli.doctor.network import holder, within
from rlcli.doctor.nodes.meeting import Hello, Meeting, located, read_hello, verdict
from rlcli.doctor.nodes.wire import Channel, StrangerError

SILENCE_LIMIT_S = 5.0
"""Seconds a connection may stay without a hello."""
SPARE_CONNECTIONS = 32
TURN_S = 0.2
BEAT_S = 1.0


@dataclass(slots=True)
class _Visitor:
    """One connection. `hello`: None until it came."""

    channel: Channel
    address: str
    since_s: float
    hello: Hello | None = None


class _Room:
    """Who is connected to node 0, and what they said."""

    def __init__(self, meeting: Meeting, own: Hello, server: socket.socket) -> None:
        self.meeting = meeting
        self.own = own
        self.num_strangers = 0
        self.departed: list[Hello] = []
        self._visitors: list[_Visitor] = []
        self._server = server
        self._selector = selectors.DefaultSelector()
        self._selector.register(server, selectors.EVENT_READ)

    @property
    def hellos(self) -> list[Hello]:
        return [self.own, *(v.hello for v in self._visitors if v.hello is not None)]

    @property
    def missing(self) -> list[int]:
        came = {hello.rank for hello in self.hellos}
        return [rank for rank in range(self.meeting.nnodes) if rank not in came]

    @property
    def is_hopeless(self) -> bool:
        """A rank came twice, or not all count as many nodes: waiting longer changes nothing."""
        ranks = [hello.rank for hello in self.hellos]
        num_wrong = sum(hello.nnodes != self.meeting.nnodes for hello in self.hellos)
        return len(set(ranks)) < len(ranks) or num_wrong > 0 or max(ranks) >= self.meeting.nnodes

    def turn(self) -> None:
        """Hear who speaks next, and send away who stays silent."""
        for key, _ in self._selector.select(TURN_S):
            if key.data is None:
                self._welcome()
            else:
                self._hear(key.data)
        for visitor in list(self._visitors):
            if visitor.hello is None and time.monotonic() - visitor.since_s > SILENCE_LIMIT_S:
                self._reject(visitor)

    def tell_waiting(self) -> None:
        """Let every node know that node 0 is there, and for whom it waits."""
        self._send({"waiting": self.missing})

    def announce(self, findings: Sequence[Finding]) -> None:
        """Send the verdict to every node that came."""
        self._send({"verdict": [asdict(finding) for finding in findings]})

    def close(self, *, keeps_nodes: bool) -> dict[int, Channel]:
        """Send everybody away, or only the strangers: the line to every node that may stay."""
        kept: dict[int, Channel] = {}
        for visitor in list(self._visitors):
            if keeps_nodes and visitor.hello is not None:
                kept[visitor.hello.rank] = visitor.channel
            else:
                self._drop(visitor)
        self._selector.close()
        return kept

    def _send(self, message: dict[str, object]) -> None:
        for visitor in [v for v in self._visitors if v.hello is not None]:
            try:
                visitor.channel.send(message)
            except OSError:
                self._part(visitor)

    def _welcome(self) -> None:
        try:
            connection, address = self._server.accept()
        except OSError:
            return  # gone before it was taken
        if len(self._visitors) >= self.meeting.nnodes + SPARE_CONNECTIONS:
            connection.close()
            return
        channel = Channel(connection, self.meeting.hello_limit)
        visitor = _Visitor(channel, str(address[0]), time.monotonic())
        self._visitors.append(visitor)
        self._selector.register(connection, selectors.EVENT_READ, visitor)

    def _hear(self, visitor: _Visitor) -> None:
        try:
            for message in visitor.channel.read():
                visitor.hello = read_hello(message, visitor.address)
        except StrangerError:
            self._reject(visitor)
        except OSError:
            self._part(visitor)

    def _reject(self, visitor: _Visitor) -> None:
        self.num_strangers += 1
        self._drop(visitor)

    def _part(self, visitor: _Visitor) -> None:
        if visitor.hello is not None:
            self.departed.append(visitor.hello)
        self._drop(visitor)

    def _drop(self, visitor: _Visitor) -> None:
        self._visitors.remove(visitor)
        self._selector.unregister(visitor.channel)
        visitor.channel.close()


def receive_nodes(meeting: Meeting, own: Hello, tell: Callable[[str], None]) -> list[Finding]:
    """The verdict, after every other node has come and been told, or the time is over."""
    findings, channels = gather(meeting, own, tell)
    for channel in channels.values():
        channel.close()
    return findings


def gather(
    meeting: Meeting, own: Hello, tell: Callable[[str], None]
) -> tuple[list[Finding], dict[int, Channel]]:
    """(verdict, the open line to every other node); no lines where something is bad."""
    deadline_s = time.monotonic() + meeting.timeout_s
    server = listen(meeting)
    if isinstance(server, Finding):
        return [server], {}
    channels: dict[int, Channel] = {}
    with server:
        address = str(server.getsockname()[0])
        room = _Room(meeting, located(own, address), server)
        is_good = False
        try:
            _wait(room, deadline_s, tell)
            findings = verdict(meeting, room.hellos, room.departed, address=address)
            if room.num_strangers:
                says = f"{room.num_strangers} connections that are no {meeting.command} were closed"
                findings.append(Finding("strangers", "warn", says))
            room.announce(findings)
            is_good = all(finding.level != "bad" for finding in findings)
        finally:
            channels = room.close(keeps_nodes=is_good)
    return findings, channels


def _wait(room: _Room, deadline_s: float, tell: Callable[[str], None]) -> None:
    started_s = next_beat_s = time.monotonic()
    while room.missing and not room.is_hopeless and time.monotonic() < deadline_s:
        if time.monotonic() >= next_beat_s:
            next_beat_s += BEAT_S
            ranks = ", ".join(str(rank) for rank in room.missing)
            waited_s = time.monotonic() - started_s
            place = room.meeting.place
            tell(f"waiting for node {ranks}/{room.meeting.nnodes} at {place} ({waited_s:.0f} s)")
            room.tell_waiting()
        room.turn()


def listen(meeting: Meeting) -> socket.socket | Finding:
    """A socket at the address MASTER_ADDR has here, or why there can be none."""
    if meeting.listens_anywhere:
        return _bound(meeting, [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("", meeting.port))])
    try:
        found = within(
            meeting.timeout_s,
            lambda: socket.getaddrinfo(meeting.host, meeting.port, type=socket.SOCK_STREAM),
        )
    except (socket.gaierror, UnicodeError, TimeoutError):
        says = f"the name in MASTER_ADDR={meeting.host} does not resolve here"
        cure = "set MASTER_ADDR to the IP address of node 0, or add the name to /etc/hosts"
        return Finding("node 0", "bad", says, cure)
    return _bound(meeting, found)


def _bound(meeting: Meeting, places: Sequence[tuple[Any, ...]]) -> socket.socket | Finding:
    """A socket that listens at the first of `places`, rows of getaddrinfo, that lets it."""
    problem = OSError()
    for family, kind, protocol, _, address in places:
        server = socket.socket(family, kind, protocol)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(address)
            server.listen(meeting.nnodes + SPARE_CONNECTIONS)
        except OSError as error:
            problem = error
            server.close()
        else:
            server.setblocking(False)
            return server
    return _cannot_listen(meeting, problem)


def _cannot_listen(meeting: Meeting, problem: OSError) -> Finding:
    another = "set another MASTER_PORT on every node"
    if problem.errno == errno.EADDRNOTAVAIL:
        says = f"MASTER_ADDR={meeting.host} is no address of this machine ({socket.gethostname()})"
        cure = "start the node with NODE_RANK=0 on the machine that has it, or correct MASTER_ADDR"
        return Finding("node 0", "bad", says, cure)
    if problem.errno == errno.EADDRINUSE:
        says = f"port {meeting.port} is taken by {holder(meeting.port)}"
        cure = f"{another}; or has a second node here NODE_RANK=0?"
        return Finding("node 0", "bad", says, cure)
    says = f"cannot listen at {meeting.place}: {problem.strerror}"
    return Finding("node 0", "bad", says, another)
