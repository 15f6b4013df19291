"""The nodes of a run meet in torch's store, which node 0 has at MASTER_ADDR and MASTER_PORT."""

from __future__ import annotations

import errno
import ipaddress
import json
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rlcli.doctor.finding import Finding
from rlcli.doctor.network import holder, interface_of, own_address, within
from rlcli.doctor.packages import versions_of
from rlcli.errors import ConfigError
from rlcli.launch import read_node

if TYPE_CHECKING:
    from torch.distributed import Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

TIMEOUT_S = 120.0
COMMAND = "rlcli doctor --nodes"
USAGE = f"NNODES=2 NODE_RANK=0 MASTER_ADDR=192.168.1.1 {COMMAND}"
PACKAGES = ("torch", "transformers")
CONNECT_LIMIT_S, RETRY_S, TURN_S = 5.0, 0.5, 0.2
GRACE_S = 5.0
"""Extra time for the verdict of node 0, which may have started later."""
GROUP_LIMIT_S = 24.0
"""How long gloo may take to connect, five times over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """Where and when. rank: of this node. command: what every node runs.

    min_nodes: with so many it begins last_call_s after the first, without the others.
    listens_anywhere: node 0 need not have the address, which is translated on the way to it.
    """

    rank: int
    nnodes: int
    host: str
    port: int
    min_nodes: int = 0
    timeout_s: float = TIMEOUT_S
    last_call_s: float = 0.0
    command: str = COMMAND
    listens_anywhere: bool = False

    @property
    def place(self) -> str:
        """ADDR:PORT."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """What a node sends about itself. address: its own, on the way to node 0."""

    rank: int
    nnodes: int
    host: str
    address: str
    interface: str
    command: str
    versions: Mapping[str, str]

    def shown(self) -> str:
        """`gpu-b 10.0.0.2 (eth0)`."""
        interface = f" ({self.interface})" if self.interface else ""
        return f"{self.host} {self.address}{interface}"


@dataclass(frozen=True, slots=True)
class Met:
    """How the nodes met: no store if something is bad. hellos: of all nodes, on node 0 alone."""

    findings: list[Finding]
    store: TCPStore | None = None
    hellos: list[Hello] = field(default_factory=list[Hello])


class _RefusedError(Exception):
    """Nodes that cannot meet. Args: the finding."""


class _NotYetError(Exception):
    """Node 0 does not answer now; it may start later. Args: what happened, the cure."""


def read_meeting(env: Mapping[str, str], *, timeout_s: float = TIMEOUT_S) -> Meeting:
    """The meeting that NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT describe.

    Raises: ConfigError when one is missing or cannot be.
    """
    from rlcli.config.schema import Config, TrainConfig

    missing = [n for n in ("NNODES", "NODE_RANK", "MASTER_ADDR") if not env.get(n, "").strip()]
    if missing:
        raise ConfigError(
            f"doctor --nodes needs {', '.join(missing)} in the environment. On every node:\n{USAGE}"
        )
    text = env["NNODES"].strip().rpartition(":")[2]
    nnodes = int(text) if text.isascii() and text.isdigit() and len(text) < 7 else 0
    if nnodes < 2:
        raise ConfigError(
            f"NNODES={text} (environment): doctor --nodes is for 2 nodes and more. On every node:\n"
            f"{USAGE}"
        )
    node = read_node(Config(train=TrainConfig(nnodes=nnodes)), env)
    return Meeting(
        rank=node.node_rank,
        nnodes=nnodes,
        host=node.master_addr,
        port=node.master_port,
        timeout_s=timeout_s,
    )


def meet(meeting: Meeting, *, tell: Callable[[str], None]) -> list[Finding]:
    """Whether the nodes meet, have the same versions and reach each other; the same on all.

    tell: for the nodes that are waited for.
    """
    met = gather(meeting, tell)
    if met.store is None:
        return met.findings
    return [*met.findings, _group_finding(meeting, met.store)]


def gather(meeting: Meeting, tell: Callable[[str], None]) -> Met:
    """Connect all nodes to the store of node 0."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # it logs with C++ stacks
    try:
        if meeting.rank == 0:
            return _receive(meeting, *_listen(meeting), tell)
        return _join(meeting, tell)
    except _RefusedError as error:
        return Met([error.args[0]])


def _hello(meeting: Meeting, address: str) -> Hello:
    return Hello(
        rank=meeting.rank,
        nnodes=meeting.nnodes,
        host=socket.gethostname(),
        address=address,
        interface=interface_of(address),
        command=meeting.command,
        versions=versions_of(PACKAGES),
    )


def _receive(meeting: Meeting, store: TCPStore, address: str, tell: Callable[[str], None]) -> Met:
    """Node 0: wait for the others, and tell all what was found."""
    begun_s = time.monotonic()
    own = _hello(meeting, address)
    next_report_s, hellos = begun_s, [own]
    min_nodes = meeting.min_nodes or meeting.nnodes
    while True:
        others = [store.get(f"hello/{i + 1}") for i in range(store.add("hellos", 0))]
        hellos = [own, *(Hello(**json.loads(text)) for text in others)]
        came, waited_s = {hello.rank for hello in hellos}, time.monotonic() - begun_s
        missing = [rank for rank in range(meeting.nnodes) if rank not in came]
        is_late = len(came) >= min_nodes and waited_s > meeting.last_call_s
        if not missing or is_late or _is_hopeless(meeting, hellos) or waited_s > meeting.timeout_s:
            break
        if time.monotonic() >= next_report_s:
            next_report_s += 1.0
            ranks = ", ".join(map(str, missing))
            store.set("waiting", ranks)
            nnodes, place = meeting.nnodes, meeting.place
            tell(f"waiting for node {ranks}/{nnodes} at {place} ({waited_s:.0f} s)")
        time.sleep(TURN_S)
    findings = verdict(meeting, hellos)
    store.set("verdict", json.dumps([asdict(finding) for finding in findings]))
    if _is_good(findings):
        return Met(findings, store, hellos)
    _await_count(store, "read", len(hellos) - 1)
    return Met(findings)


def _is_hopeless(meeting: Meeting, hellos: Sequence[Hello]) -> bool:
    """A rank came twice, or not all count as many nodes: waiting longer changes nothing."""
    ranks = [hello.rank for hello in hellos]
    has_other = any(hello.nnodes != meeting.nnodes for hello in hellos)
    return len(set(ranks)) < len(ranks) or has_other or max(ranks) >= meeting.nnodes


def _is_good(findings: Sequence[Finding]) -> bool:
    return all(finding.level != "bad" for finding in findings)


def _join(meeting: Meeting, tell: Callable[[str], None]) -> Met:
    """Any other node: connect to node 0, and wait for what it found."""
    from torch.distributed import DistError

    deadline_s = time.monotonic() + meeting.timeout_s
    address = _await_node_0(meeting, deadline_s, tell)
    try:
        store = _connect_store(meeting)
        hello = json.dumps(asdict(_hello(meeting, address)))
        store.set(f"hello/{store.add('hellos', 1)}", hello)
        while not within(GRACE_S, lambda: store.check(["verdict"])):
            left_s = deadline_s + GRACE_S - time.monotonic()
            if left_s < 0:
                raise TimeoutError
            if store.check(["waiting"]):
                waited_s = meeting.timeout_s + GRACE_S - left_s
                ranks, nnodes = store.get("waiting").decode(), meeting.nnodes
                tell(f"connected; node 0 waits for node {ranks}/{nnodes} ({waited_s:.0f} s)")
            time.sleep(RETRY_S)
        findings = [Finding(**row) for row in json.loads(store.get("verdict"))]
        store.add("read", 1)
    except (DistError, TimeoutError) as error:
        says = f"{meeting.place} closed the connection"
        cure = f"start {meeting.command} on node 0 again; what does it say?"
        raise _RefusedError(Finding("node 0", "bad", says, cure)) from error
    return Met(findings, store if _is_good(findings) else None)


def _connect_store(meeting: Meeting) -> TCPStore:
    """Raises: _RefusedError if something other than torch's store listens there."""
    from torch.distributed import DistError, TCPStore  # pyright: ignore[reportPrivateImportUsage]

    limit = timedelta(seconds=CONNECT_LIMIT_S)
    try:
        # a server that stays silent keeps the constructor for ever
        return within(
            2 * CONNECT_LIMIT_S,
            lambda: TCPStore(
                meeting.host, meeting.port, is_master=False, wait_for_workers=False, timeout=limit
            ),
        )
    except (DistError, TimeoutError) as error:
        says = f"something else than {meeting.command} listens at {meeting.place}"
        cure = "set another MASTER_PORT on every node"
        raise _RefusedError(Finding("node 0", "bad", says, cure)) from error


def _await_count(store: Store, key: str, count: int) -> None:
    """The other nodes need the store until they have read it."""
    deadline_s = time.monotonic() + GRACE_S
    while store.add(key, 0) < count and time.monotonic() < deadline_s:
        time.sleep(TURN_S)


def _group_finding(meeting: Meeting, store: TCPStore) -> Finding:
    """Whether the nodes also connect at other ports, as the ranks of a run do."""
    import torch
    import torch.distributed as dist
    from torch.distributed import PrefixStore  # pyright: ignore[reportPrivateImportUsage]

    found = Finding("network", "ok", "the nodes reach each other")
    if interface := interface_of(own_address(meeting.host)):  # not the host name's
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    try:
        dist.init_process_group(
            "gloo",
            store=PrefixStore("doctor", store),
            rank=meeting.rank,
            world_size=meeting.nnodes,
            timeout=timedelta(seconds=GROUP_LIMIT_S),
        )
        dist.all_reduce(torch.zeros(1))
        dist.destroy_process_group()
    except RuntimeError as error:
        says = f"the nodes do not reach each other: {str(error).partition(chr(10))[0][-200:]}"
        cure = (
            "open all TCP ports between the nodes, or set GLOO_SOCKET_IFNAME and "
            "NCCL_SOCKET_IFNAME to each node's interface of a network where they are open"
        )
        found = Finding("network", "bad", says, cure)
    store.add("done", 1)
    if meeting.rank == 0:
        _await_count(store, "done", meeting.nnodes)
    return found


def verdict(meeting: Meeting, hellos: Sequence[Hello]) -> list[Finding]:
    """What node 0 knows when the meeting ends; its own hello comes first."""
    first: dict[int, Hello] = {}
    findings: list[Finding] = []
    for hello in sorted(hellos, key=lambda hello: hello.rank):
        findings.append(_about(meeting, hello, first.setdefault(hello.rank, hello)))
    missing = [rank for rank in range(meeting.nnodes) if rank not in first]
    if not _is_good(findings) or len(first) >= (meeting.min_nodes or meeting.nnodes):
        missing = []  # the meeting ended early
    findings += [_absent(meeting, rank, hellos[0].address) for rank in missing]
    return findings + version_findings(list(first.values()))


def _about(meeting: Meeting, hello: Hello, first: Hello) -> Finding:
    name = f"node {hello.rank}"
    if hello is not first:
        says = f"came twice: from {first.shown()} and from {hello.shown()}"
        return Finding(name, "bad", says, "set another NODE_RANK on every node")
    if hello.nnodes != meeting.nnodes or hello.rank >= meeting.nnodes:
        says = f"{hello.shown()} has NNODES={hello.nnodes}, node 0 has NNODES={meeting.nnodes}"
        return Finding(name, "bad", says, "set the same NNODES on every node")
    if hello.command != meeting.command:
        says = f"{hello.shown()} runs {hello.command}, node 0 runs {meeting.command}"
        return Finding(name, "bad", says, "start the same on every node")
    versions = ", ".join(f"{name} {version}" for name, version in hello.versions.items())
    return Finding(name, "ok", f"{hello.shown()}: {versions}")


def _absent(meeting: Meeting, rank: int, address: str) -> Finding:
    if ipaddress.ip_address(address).is_loopback:
        cure = (
            f"MASTER_ADDR={meeting.host} is {address} on node 0, which only node 0 itself can "
            "reach: set it to the address other machines see"
        )
    else:
        cure = f"start it with NODE_RANK={rank}; its own output says why it cannot connect"
    return Finding(f"node {rank}", "bad", f"did not come within {meeting.timeout_s:g} s", cure)


def version_findings(hellos: Sequence[Hello]) -> list[Finding]:
    """Packages whose versions differ between nodes; of Python only 3.11, 3.12, ... counts."""
    findings: list[Finding] = []
    for package in sorted({name for hello in hellos for name in hello.versions}):
        nodes: dict[str, list[str]] = {}
        for hello in hellos:
            version = hello.versions.get(package, "not told")
            version = ".".join(version.split(".")[:2]) if package == "python" else version
            nodes.setdefault(version, []).append(str(hello.rank))
        if len(nodes) > 1:
            parts = [f"{v} on node{'s' * (len(r) > 1)} {', '.join(r)}" for v, r in nodes.items()]
            cure = f"install the same {package} on every node"
            findings.append(Finding(package, "bad", "; ".join(parts), cure))
    return findings


def _await_node_0(meeting: Meeting, deadline_s: float, tell: Callable[[str], None]) -> str:
    """This node's address on the way to node 0, once something listens there."""
    while True:
        try:
            with _connect(meeting, deadline_s) as connection:
                return str(connection.getsockname()[0]).split("%")[0]
        except _NotYetError as error:
            says, cure = error.args
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            waited = f"gave up after {meeting.timeout_s:g} s"
            raise _RefusedError(Finding("node 0", "bad", f"{says}; {waited}", cure))
        tell(f"waiting for node 0 ({meeting.timeout_s - left_s:.0f} s): {says}")
        time.sleep(min(RETRY_S, left_s))


def _connect(meeting: Meeting, deadline_s: float) -> socket.socket:
    """A connection to node 0. Raises: _NotYetError."""
    left_s = max(0.1, deadline_s - time.monotonic())
    try:
        found = within(left_s, lambda: _resolve(meeting))
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


def _resolve(meeting: Meeting) -> list[Any]:
    return socket.getaddrinfo(meeting.host, meeting.port, type=socket.SOCK_STREAM)


def _not_yet(meeting: Meeting, error: OSError) -> _NotYetError:
    place, port = meeting.place, meeting.port
    if isinstance(error, ConnectionRefusedError):
        says = f"connection refused, nothing listens at {place}"
        cure = f"start node 0 (NODE_RANK=0 {meeting.command}); is port {port} open there?"
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


def _listen(meeting: Meeting) -> tuple[TCPStore, str]:
    """(the store, the address it listens at). Raises: _RefusedError."""
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    places = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("", meeting.port))]
    if not meeting.listens_anywhere:
        try:
            places = within(meeting.timeout_s, lambda: _resolve(meeting))
        except (OSError, UnicodeError) as error:
            says = f"the name in MASTER_ADDR={meeting.host} does not resolve here"
            cure = "set MASTER_ADDR to the IP address of node 0, or add the name to /etc/hosts"
            raise _RefusedError(Finding("node 0", "bad", says, cure)) from error
    problem = OSError()
    for family, kind, protocol, _, address in places:
        server = socket.socket(family, kind, protocol)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(address)
            server.listen(socket.SOMAXCONN)
        except OSError as error:
            problem = error
            server.close()
            continue
        host = str(server.getsockname()[0])
        reached = "localhost" if meeting.listens_anywhere else host
        store = TCPStore(
            reached,
            meeting.port,
            is_master=True,
            wait_for_workers=False,
            master_listen_fd=server.detach(),
        )
        return store, host
    raise _RefusedError(_cannot_listen(meeting, problem))


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
