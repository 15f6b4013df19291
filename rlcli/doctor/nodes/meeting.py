"""Where the nodes meet, what each says of itself, and what follows from it."""

from __future__ import annotations

import ipaddress
import platform
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rlcli import __version__
from rlcli.doctor.finding import Finding
from rlcli.doctor.nodes.wire import HELLO_LIMIT, StrangerError, plain, whole_number
from rlcli.doctor.packages import installed
from rlcli.errors import ConfigError
from rlcli.launch import read_launch

TIMEOUT_S = 120.0
COMMAND = "rlcli doctor --nodes"
USAGE = f"NNODES=2 NODE_RANK=0 MASTER_ADDR=192.168.1.1 {COMMAND}"
MAX_FACTS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """Where and when. `rank`: this node's. command: what every node runs.

    listens_anywhere: node 0 need not have the address, which is translated on the way to it.
    hello_limit: bytes of what a node says of itself.
    """

    rank: int
    nnodes: int
    host: str
    port: int
    timeout_s: float = TIMEOUT_S
    command: str = COMMAND
    listens_anywhere: bool = False
    hello_limit: int = HELLO_LIMIT

    @property
    def place(self) -> str:
        """ADDR:PORT."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """A node about itself. `address`: where its connection came from.

    facts: by name, what must be the same on every node besides the versions.
    """

    rank: int
    nnodes: int
    host: str
    versions: dict[str, str]
    command: str = COMMAND
    facts: dict[str, str] = field(default_factory=dict[str, str])
    address: str = ""
    interface: str = ""

    def message(self) -> dict[str, Any]:
        """As it is sent."""
        return {
            "rank": self.rank,
            "nnodes": self.nnodes,
            "host": self.host,
            "versions": self.versions,
            "command": self.command,
            "facts": self.facts,
            "interface": self.interface,
        }

    def shown(self) -> str:
        """`gpu-b 10.0.0.2 (eth0)`."""
        interface = f" ({self.interface})" if self.interface else ""
        return f"{self.host} {self.address}{interface}"


def read_meeting(env: Mapping[str, str], *, timeout_s: float = TIMEOUT_S) -> Meeting:
    """What NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT say.

    Raises: ConfigError when one is missing or cannot be.
    """
    from rlcli.config.schema import Config, TrainConfig

    missing = [n for n in ("NNODES", "NODE_RANK", "MASTER_ADDR") if not env.get(n, "").strip()]
    if missing:
        raise ConfigError(
            f"doctor --nodes needs {', '.join(missing)} in the environment. On every node:\n{USAGE}"
        )
    text = env["NNODES"].strip()
    nnodes = int(text) if text.isascii() and text.isdigit() and len(text) < 7 else 0
    if nnodes < 2:
        raise ConfigError(
            f"NNODES={text} (environment): doctor --nodes is for 2 nodes and more. On every node:\n"
            f"{USAGE}"
        )
    launch = read_launch(Config(train=TrainConfig(nnodes=nnodes)), env)
    return Meeting(
        rank=launch.node_rank,
        nnodes=nnodes,
        host=launch.master_addr or "",
        port=launch.master_port,
        timeout_s=timeout_s,
    )


def own_hello(
    meeting: Meeting,
    packages: Sequence[str] = ("torch", "transformers"),
    facts: Mapping[str, str] | None = None,
) -> Hello:
    """This node about itself."""
    versions = {"rlcli": __version__, "python": platform.python_version()}
    here = installed(packages)
    for name in packages:
        package = here.get(name)
        versions[name] = package.full_version if package else "not installed"
    return Hello(
        rank=meeting.rank,
        nnodes=meeting.nnodes,
        host=socket.gethostname(),
        versions=versions,
        command=meeting.command,
        facts=dict(facts or {}),
    )


def read_hello(message: Mapping[str, Any], address: str) -> Hello:
    """The hello in a message.

    Raises: StrangerError when it is none.
    """
    versions, facts = message.get("versions"), message.get("facts")
    if not isinstance(versions, dict) or len(versions) > 20:
        raise StrangerError
    if not isinstance(facts, dict) or len(facts) > MAX_FACTS:
        raise StrangerError
    return Hello(
        rank=whole_number(message.get("rank")),
        nnodes=whole_number(message.get("nnodes")),
        host=plain(message.get("host")),
        versions={plain(name): plain(version) for name, version in versions.items()},
        command=plain(message.get("command")),
        facts={plain(name): plain(fact) for name, fact in facts.items()},
        address=address,
        interface=plain(message.get("interface")),
    )


def located(hello: Hello, address: str) -> Hello:
    """`hello` with its own address and the network interface that has it."""
    return replace(hello, address=address, interface=interface_of(address))


def interface_of(address: str) -> str:
    """The network interface of this machine that has `address`; empty where none is known."""
    try:
        import psutil
    except ImportError:
        return ""
    for name, addresses in psutil.net_if_addrs().items():
        if any(found.address.split("%")[0] == address for found in addresses):
            return name
    return ""


def verdict(
    meeting: Meeting, hellos: Sequence[Hello], departed: Sequence[Hello] = (), *, address: str
) -> list[Finding]:
    """What node 0 knows when the meeting ends. `address`: where it listened."""
    first: dict[int, Hello] = {}
    findings: list[Finding] = []
    for hello in sorted(hellos, key=lambda hello: hello.rank):
        findings.append(_about(meeting, hello, first.setdefault(hello.rank, hello)))
    missing = [rank for rank in range(meeting.nnodes) if rank not in first]
    if any(finding.level == "bad" for finding in findings):
        missing = []  # the meeting ended early
    left = {hello.rank: hello for hello in departed}
    findings += [
        _left(left[rank]) if rank in left else _absent(meeting, rank, address) for rank in missing
    ]
    came = list(first.values())
    return findings + version_findings(came) + fact_findings(came)


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


def _left(hello: Hello) -> Finding:
    says = f"came from {hello.shown()}, and left before the others were there"
    return Finding(f"node {hello.rank}", "bad", says, "start all nodes at about the same time")


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
    told = []
    for hello in hellos:
        python = ".".join(hello.versions.get("python", "not told").split(".")[:2])
        told.append((hello.rank, hello.versions | {"python": python}))
    return [
        Finding(package, "bad", says, f"install the same {package} on every node")
        for package, says in _differences(told)
    ]


def fact_findings(hellos: Sequence[Hello]) -> list[Finding]:
    """What else differs between nodes."""
    cure = "give every node the same settings and files"
    told = [(hello.rank, hello.facts) for hello in hellos]
    return [Finding(name, "bad", says, cure) for name, says in _differences(told)]


def _differences(told: Sequence[tuple[int, Mapping[str, str]]]) -> list[tuple[str, str]]:
    """(name, `A on node 0; B on nodes 1, 2`) of what not all nodes tell the same of."""
    found = []
    for name in sorted({name for _, facts in told for name in facts}):
        ranks: dict[str, list[str]] = {}
        for rank, facts in told:
            ranks.setdefault(facts.get(name, "not told"), []).append(str(rank))
        if len(ranks) > 1:
            parts = [f"{v} on node{'s' * (len(r) > 1)} {', '.join(r)}" for v, r in ranks.items()]
            found.append((name, "; ".join(parts)))
    return found
