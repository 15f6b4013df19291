"""`rlcli doctor`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from rlcli.cli.arguments import Json
from rlcli.doctor.finding import Finding
from rlcli.monitor.signals import INTERRUPTED
from rlcli.text import progress_line, wrap

NAME_WIDTH = 17


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
    from rlcli.launcher.job import Limits
    from rlcli.launcher.rendezvous import check_nodes, node_meeting, read_nodes

    tell = progress_line()
    meeting = node_meeting(read_nodes(os.environ), Limits(), tell)
    try:
        return {"nodes": check_nodes(meeting)}
    finally:
        tell("")


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
