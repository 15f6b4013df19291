"""How ranks, or the agents of several nodes, find each other in a store of torch.

Number 0 listens at MASTER_ADDR:MASTER_PORT, or its launcher does. The others connect, and each
sends a description of itself. Number 0 sends all of them the list of those that came.
"""

from __future__ import annotations

import errno
import json
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta

from torch.distributed import DistError, PrefixStore, Store, TCPStore

from rlcli.distributed.agree import differences
from rlcli.distributed.lines import named
from rlcli.distributed.rank_env import is_loopback_name
from rlcli.errors import LaunchError
from rlcli.system.finding import Finding
from rlcli.system.network import holder, within

TRY_S, HANDSHAKE_S, POLL_S = 5.0, 30.0, 0.2
UNREACHABLE_S = 120.0
GRACE_S = 15.0
"""Extra time for the answer of number 0, which may have started later."""
STORE_LIMIT = timedelta(seconds=60)
SHOWN_CAUSES = 2
VARIABLES = {"node": ("NODE_RANK", "NNODES"), "rank": ("RANK", "WORLD_SIZE")}


class MeetingError(LaunchError):
    """Processes do not meet, or do not match. findings: at least one of them is bad."""

    def __init__(self, *findings: Finding) -> None:
        self.findings = findings
        bad = [finding for finding in findings if finding.level == "bad"]
        causes = "; ".join(f"{each.name}: {each.says}" for each in bad[:SHOWN_CAUSES])
        if more := ", ".join(each.name for each in bad[SHOWN_CAUSES:][:5]):
            causes += f"; and {more}"
        super().__init__(
            f"these processes cannot train together: {causes}.\nWhat to do: {bad[0].cure}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A process that came. where: its host. facts: by name, values that must be equal for all."""

    number: int
    size: int
    where: str
    facts: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """Where and when this process, number `number` of `size`, meets the others.

    unit: `node` or `rank`. limit_s: timeout for the others; at most UNREACHABLE_S if number 0
    cannot be reached. least: so many are enough after last_call_s. is_service: `host` may be the
    name of a service in front of number 0. progress: shows progress, on number 0 after quiet_s.
    """

    unit: str
    number: int
    size: int
    host: str
    port: int
    limit_s: float
    least: int
    last_call_s: float = 0.0
    quiet_s: float = 0.0
    is_service: bool = False
    progress: Callable[[str], None] = lambda text: None

    def error(self, says: str, cure: str) -> MeetingError:
        """The error of this process: a finding, with its cure."""
        return MeetingError(Finding(f"{self.unit} {self.number}", "bad", says, cure))

    def listen(self) -> TCPStore:
        """Open the store of number 0, on all its addresses. Raises: MeetingError."""
        try:
            store = TCPStore(
                "localhost", self.port, is_master=True, wait_for_workers=False, timeout=STORE_LIMIT
            )
        except DistError as error:
            says = f"port {self.port} is taken by {holder(self.port)}"
            if "EADDRINUSE" not in str(error):
                says = f"port {self.port}: {str(error).rpartition('message: ')[2]}"
            variable = VARIABLES[self.unit][0]
            cure = f"set another MASTER_PORT on all; or has a second {self.unit} here {variable}=0?"
            raise self.error(says, cure) from error
        try:
            if not self.is_service:
                self._probe()
        except (OSError, UnicodeError) as error:
            here, (why, _) = socket.gethostname(), self._cause(error)
            says = f"MASTER_ADDR={self.host} is no address of this machine ({here}): {why}"
            cure = f"start {self.unit} 0 on the machine that has it, or correct MASTER_ADDR"
            raise self.error(says, cure) from error
        return store

    def connect(self) -> TCPStore:
        """Connect to the store of number 0, which may open it later. Raises: MeetingError."""
        begun_s = refused_s = time.monotonic()
        while True:
            try:
                self._probe()
                break
            except (OSError, UnicodeError) as error:
                (says, cure), now_s = self._cause(error), time.monotonic()
                limit_s, since_s = min(self.limit_s, UNREACHABLE_S), refused_s
                if isinstance(error, ConnectionRefusedError):
                    limit_s, since_s, refused_s = self.limit_s, begun_s, now_s
                if now_s - since_s >= limit_s:
                    raise self.error(f"{says}; gave up after {limit_s:g} s", cure) from error
            self.progress(f"waiting for {self.unit} 0 ({now_s - begun_s:.0f} s): {says}")
            time.sleep(POLL_S)
        address, limit = (self.host, self.port), timedelta(seconds=HANDSHAKE_S)
        try:
            # a server that stays silent blocks the constructor for ever
            store = within(
                HANDSHAKE_S,
                lambda: TCPStore(*address, is_master=False, wait_for_workers=False, timeout=limit),
            )
        except (DistError, TimeoutError) as error:
            says = f"something else than rlcli listens at {self.host}:{self.port}"
            raise self.error(says, "set another MASTER_PORT on all") from error
        store.set_timeout(STORE_LIMIT)
        return store

    def _probe(self) -> None:
        """Raises: OSError or UnicodeError if nothing listens there."""
        limit_s, address = min(TRY_S, self.limit_s), (self.host, self.port)
        # a name server may take minutes
        with within(2 * limit_s, lambda: socket.create_connection(address, limit_s)) as connection:
            # without a listener, a socket whose own port is this one connects to itself
            if connection.getsockname() == connection.getpeername():
                raise ConnectionRefusedError

    def _cause(self, error: OSError | UnicodeError) -> tuple[str, str]:
        """(what is wrong, the cure)."""
        first, place = f"{self.unit} 0", f"{self.host}:{self.port}"
        if isinstance(error, (socket.gaierror, UnicodeError)):
            says = f"the name {self.host} does not resolve here"
            cure = f"set MASTER_ADDR to the IP address of {first}, or add the name to /etc/hosts"
        elif isinstance(error, ConnectionRefusedError):
            says = f"connection refused, nothing listens at {place}"
            cure = f"start {first} ({VARIABLES[self.unit][0]}=0); is port {self.port} open there?"
        elif isinstance(error, TimeoutError):
            says = f"no answer from {place}"
            cure = f"open port {self.port} on {first}; is MASTER_ADDR its address in this network?"
        elif error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH):
            says = f"no route to {self.host}"
            cure = f"set MASTER_ADDR to the address of {first} in a network this machine is part of"
        else:
            says = f"{place}: {error.strerror or type(error).__name__}"
            cure = "correct MASTER_ADDR and MASTER_PORT"
        return says, cure

    def gather(self, store: Store, own: Member, key: str) -> tuple[Store, list[Member]]:
        """(a new part of the store, all members), the same on all of them.

        key: where number 0 stores its answer to this process. It must be new if the store has keys
        of earlier starts. Raises: MeetingError if `compare` finds something bad.
        """
        try:
            text = (
                self._receive(store, own, key) if not self.number else self._send(store, own, key)
            )
            prefix, rows = json.loads(text)
            part, members = PrefixStore(prefix, store), [Member(**row) for row in rows]
            findings = self.compare(members)
            if any(finding.level == "bad" for finding in findings):
                self.leave(part, len(members))
                raise MeetingError(*findings)
        except (DistError, TimeoutError) as error:
            first = f"{self.unit} 0"
            says, cure = f"{first} closed the connection", f"start {first} again; what does it say?"
            raise self.error(says, cure) from error
        return part, members

    def _send(self, store: Store, own: Member, key: str) -> bytes:
        begun_s, entry = time.monotonic(), store.add("entries", 1)
        store.set(f"entry/{entry}", json.dumps([key, asdict(own)]))
        while not within(self.limit_s + GRACE_S, lambda: store.check([key])):
            waited_s = time.monotonic() - begun_s
            if waited_s > self.limit_s + GRACE_S:
                raise TimeoutError
            store.add(f"beat/{entry}", 1)
            missing = store.get("missing").decode() if store.check(["missing"]) else "others"
            self.progress(f"connected; {self.unit} 0 waits for {missing} ({waited_s:.0f} s)")
            time.sleep(POLL_S)
        return store.get(key)

    def _receive(self, store: Store, own: Member, key: str) -> str:
        begun_s, members, keys, beats = time.monotonic(), [own], {0: key}, dict[int, int]()
        while True:
            for entry in range(1, store.add("entries", 0) + 1):
                beat = store.add(f"beat/{entry}", 0)
                if entry not in keys and beat > beats.setdefault(entry, beat):  # alive
                    keys[entry], row = json.loads(store.get(f"entry/{entry}"))
                    members.append(Member(**row))
            missing = set(range(self.size)) - {member.number for member in members}
            num, waited_s = self.size - len(missing), time.monotonic() - begun_s
            is_enough = num >= self.least and (not missing or waited_s > self.last_call_s)
            is_hopeless = len(members) > num or any(each.size != self.size for each in members)
            if is_enough or is_hopeless or waited_s > self.limit_s:
                break
            store.set("missing", text := named(missing, self.unit))
            if waited_s >= self.quiet_s:
                self.progress(f"waiting for {text} at {self.host}:{self.port} ({waited_s:.0f} s)")
            time.sleep(POLL_S)
        answer = json.dumps([secrets.token_hex(8), [asdict(member) for member in members]])
        for each in keys.values():
            store.set(each, answer)
        return answer

    def leave(self, part: Store, num: int) -> None:
        """Leave the meeting; number 0 waits for all `num`, since they need its store."""
        left, until_s = part.add("left", 1), time.monotonic() + GRACE_S
        while self.number == 0 and left < num and time.monotonic() < until_s:
            time.sleep(POLL_S)
            left = part.add("left", 0)

    def compare(self, members: Sequence[Member]) -> list[Finding]:
        """Findings: the members, what differs, and numbers that came twice or not at all."""
        came: dict[int, Member] = {}
        findings: list[Finding] = []
        variable, size_variable = VARIABLES[self.unit]
        for member in sorted(members, key=lambda member: member.number):
            name, first = f"{self.unit} {member.number}", came.setdefault(member.number, member)
            text = ", ".join(" ".join(fact) for fact in member.facts.items())
            found = Finding(name, "ok", f"{member.where}: {text}")
            if member is not first:
                says = f"came twice: from {first.where} and from {member.where}"
                found = Finding(name, "bad", says, f"set another {variable} on each")
            findings.append(found)
        facts = {number: {size_variable: str(m.size), **m.facts} for number, m in came.items()}
        for name, says in differences(facts, self.unit).items():
            findings.append(Finding(name, "bad", says, f"use the same {name} on all"))
        if len(came) >= self.least or any(finding.level == "bad" for finding in findings):
            return findings
        for number in set(range(self.size)) - came.keys():
            cure = f"start it with {variable}={number}; its own output says why it cannot connect"
            if is_loopback_name(self.host) and not self.is_service:
                cure = (
                    f"MASTER_ADDR={self.host} is an address that only {self.unit} 0 itself can "
                    "reach: set it to the address other machines see"
                )
            says = f"did not come within {self.limit_s:g} s"
            findings.append(Finding(f"{self.unit} {number}", "bad", says, cure))
        return findings
