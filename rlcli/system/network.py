"""The model hub, and the port the nodes meet at."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TypeVar

from rlcli.distributed.rank_env import read_port
from rlcli.errors import ConfigError, LaunchError
from rlcli.system.finding import Finding

HUB = "https://huggingface.co"
HUB_LIMIT_S = 3.0
T = TypeVar("T")
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def network_findings(env: Mapping[str, str]) -> list[Finding]:
    """The hub and MASTER_PORT."""
    return [hub_finding(env), port_finding(env)]


def hub_finding(env: Mapping[str, str], *, limit_s: float = HUB_LIMIT_S) -> Finding:
    """Whether models can be downloaded."""
    name = "model hub"
    for variable in OFFLINE:
        if env.get(variable, "").upper() in ("1", "ON", "YES", "TRUE"):
            says = f"{variable} is set: only models already on this machine"
            return Finding(name, "ok", says, f"unset {variable} to download")
    mirror = env.get("HF_ENDPOINT", "").strip()
    address = mirror or HUB
    says = f"{address}{' (HF_ENDPOINT)' if mirror else ''}"
    if not address.startswith(("https://", "http://")):
        return Finding(name, "warn", f"{says} is no http address", "unset HF_ENDPOINT")
    problem = _problem_of_url(address, limit_s)
    if problem is None:
        return Finding(name, "ok", f"{says} answers")
    cure = "--model DIR of a local copy, or export HF_ENDPOINT=https://... of a mirror"
    return Finding(name, "warn", f"{says} cannot be reached: {problem}", cure)


def _problem_of_url(address: str, limit_s: float) -> str | None:
    """Why nobody answers at `address`; any answer is one, an error page too."""
    from http.client import HTTPException
    from urllib.error import HTTPError, URLError
    from urllib.request import Request, urlopen

    def ask() -> None:
        with suppress(HTTPError), urlopen(Request(address, method="HEAD"), timeout=limit_s):
            pass

    try:
        within(limit_s, ask)
    except TimeoutError:
        return f"no answer within {limit_s:g} s"
    except URLError as error:
        reason = error.reason
        return str(getattr(reason, "strerror", None) or reason)
    except (OSError, ValueError, HTTPException) as error:
        return str(error) or type(error).__name__
    return None


def port_finding(env: Mapping[str, str]) -> Finding:
    """Whether node 0 could listen on MASTER_PORT here."""
    try:
        port = read_port(env)
    except ConfigError as error:
        return Finding("port", "warn", str(error))
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                return Finding("port", "warn", f"{port}: {error.strerror}", _another(port))
            return Finding("port", "warn", f"{port} is taken by {holder(port)}", _another(port))
    return Finding("port", "ok", f"{port} (MASTER_PORT) is free")


def _another(port: int) -> str:
    return f"export MASTER_PORT={port + 1 if port < 65535 else port - 1} on every node"


def holder(port: int) -> str:
    """Who listens on `port`, as far as this user may know."""
    try:
        import psutil
    except ImportError:
        return "another process"
    try:
        for connection in psutil.net_connections("tcp"):
            here = connection.laddr
            if connection.status == "LISTEN" and here and here.port == port and connection.pid:
                return f"process {connection.pid} ({psutil.Process(connection.pid).name()})"
    except psutil.Error:
        pass
    return "another process"


def interface_of(address: str) -> str:
    """The network interface of this machine that has `address`; empty if none is known."""
    try:
        import psutil
    except ImportError:
        return ""
    for name, addresses in psutil.net_if_addrs().items():
        if any(found.address.split("%")[0] == address for found in addresses):
            return name
    return ""


def own_address(master: str) -> str:
    """This node's address on the route to `master`, which may be a service in front of it.

    Raises: LaunchError if it has none.
    """
    found = socket.getaddrinfo(master, 1, type=socket.SOCK_DGRAM)
    for family, kind, protocol, _, address in sorted(
        found, key=lambda row: row[0] == socket.AF_INET6
    ):
        with socket.socket(family, kind, protocol) as probe, suppress(OSError):
            probe.connect(address)  # sends nothing
            return str(probe.getsockname()[0])
    raise LaunchError(
        f"this machine has no way to MASTER_ADDR={master}. Set it to node 0's address in the "
        "network that joins the nodes."
    )


def within(limit_s: float, ask: Callable[[], T]) -> T:
    """What `ask` returns or raises.

    Raises: TimeoutError after limit_s; a name server may keep `ask` much longer, so its thread
    is left behind.
    """
    answers: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(ask())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(max(0.0, limit_s))
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError
    return answers[0]
