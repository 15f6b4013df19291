"""`rlcli doctor`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlcli.cli.arguments import Json
from rlcli.errors import ConfigError
from rlcli.system.finding import Finding
from rlcli.system.signals import INTERRUPTED
from rlcli.terminal.text import progress_line, wrap

if TYPE_CHECKING:
    from rlcli.distributed.rank_env import NodeEnv

NAME_WIDTH = 17
USAGE = "NNODES=2 NODE_RANK=0 MASTER_ADDR=192.168.1.1 rlcli doctor --nodes"


def doctor(
    nodes: Annotated[
        bool, typer.Option("--nodes", help="Let the nodes of a run find each other.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say whether this machine fits, what is missing and the line to type.

    With --nodes, started on every node with NNODES, NODE_RANK and MASTER_ADDR set: whether the
    nodes reach each other and have the same versions.
    """
    try:
        groups = _check_nodes() if nodes else _examine()
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    findings = [finding for group in groups.values() for finding in group]
    bad = [finding.name for finding in findings if finding.level == "bad"]
    if as_json:
        rows = [{"group": name, **asdict(f)} for name, group in groups.items() for f in group]
        print(json.dumps({"ok": not bad, "findings": rows}, ensure_ascii=False))
    else:
        print("\n".join(report_lines(groups)))
        print(_summary(bad, nodes=nodes))
    raise typer.Exit(1 if bad else 0)


def _summary(bad: Sequence[str], *, nodes: bool) -> str:
    if bad:
        return f"in the way: {', '.join(bad)}"
    return "all nodes came and agree" if nodes else "nothing here is in the way of a run"


def _examine() -> Mapping[str, Sequence[Finding]]:
    from rlcli.doctor.checkup import examine

    return examine(os.environ, Path.cwd())


def _check_nodes() -> Mapping[str, Sequence[Finding]]:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # torch logs with C++ stacks
    node, progress = read_nodes(os.environ), progress_line()
    from rlcli.launcher.job import Limits
    from rlcli.launcher.rendezvous import check_nodes, meeting_of

    try:
        return {"nodes": check_nodes(meeting_of(node, Limits(), progress))}
    finally:
        progress("")


def read_nodes(env: Mapping[str, str]) -> NodeEnv:
    """This node, by NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT, or by a scheduler.

    No node may be missing. Raises: ConfigError if a variable is missing or invalid.
    """
    from rlcli.config.resolver import resolve
    from rlcli.distributed.process_count import fit_to_env, read_node
    from rlcli.distributed.rank_env import text_of

    resolved = fit_to_env(resolve(flags={}, overrides=[], files=[], env=env), None, env)
    node = read_node(resolved.config, env)
    is_given = {
        "NNODES=2": node.nnodes > 1,
        "NODE_RANK": node.scheduler or text_of(env, "NODE_RANK"),
        "MASTER_ADDR": node.master_addr,
    }
    if missing := ", ".join(name for name, has in is_given.items() if not has):
        raise ConfigError(
            f"doctor --nodes needs {missing} in the environment. On every node:\n{USAGE}"
        )
    return replace(node, min_nodes=node.nnodes)


def report_lines(groups: Mapping[str, Sequence[Finding]]) -> list[str]:
    """The findings as text of at most 80 columns; only a long path or command is longer."""
    lines = []
    for group, findings in groups.items():
        lines += [group] if findings else []
        for finding in findings:
            head = f"  {finding.level:<4}  {finding.name:<{NAME_WIDTH}}  "
            lines += wrap(finding.says, head)
            for step in (finding.cure or "").splitlines():
                end = " \\" if " -m pip " in step else ""
                lines += wrap(step, "     -> ", line_end=end)
    return lines
