"""Checks of the model hub and of the rendezvous port."""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping
from contextlib import suppress

from rlcli.distributed.rank_env import read_port
from rlcli.errors import ConfigError
from rlcli.system.finding import Finding
from rlcli.system.network import holder, within

HUB = "https://huggingface.co"
HUB_LIMIT_S = 3.0
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
    """Reason that `address` does not respond; any response counts, even an error page."""
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
