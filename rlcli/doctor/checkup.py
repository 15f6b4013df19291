"""All checks of one machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rlcli.doctor.gpu import gpu_findings
from rlcli.doctor.keys import key_findings
from rlcli.doctor.leftovers import leftover_findings
from rlcli.doctor.machine import machine_findings
from rlcli.doctor.network import network_findings
from rlcli.doctor.packages import package_findings
from rlcli.doctor.sandbox import sandbox_findings
from rlcli.system.finding import Finding


def examine(env: Mapping[str, str], cwd: Path) -> dict[str, list[Finding]]:
    """Run all checks, by group, in parallel: some wait for the network or a driver."""
    checks: dict[str, Callable[[], list[Finding]]] = {
        "packages": package_findings,
        "gpu": lambda: gpu_findings(env),
        "machine": lambda: machine_findings(env, cwd),
        "network": lambda: network_findings(env),
        "processes": leftover_findings,
        "sandbox": sandbox_findings,
        "keys": lambda: key_findings(env),
    }
    with ThreadPoolExecutor(len(checks)) as pool:
        waiting = {group: pool.submit(check) for group, check in checks.items()}
        return {group: answer.result() for group, answer in waiting.items()}
