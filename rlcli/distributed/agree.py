"""Agreement of the ranks on settings, data, versions and the run directory."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rlcli.distributed.collectives import Ranks, broadcast_from_rank0
from rlcli.distributed.known_run import hold_run
from rlcli.distributed.lines import named
from rlcli.distributed.rank_env import RankEnv
from rlcli.errors import LaunchError, RlcliError, UsageError
from rlcli.run_dir.folder import RunDir
from rlcli.system.packages import versions_of

if TYPE_CHECKING:
    from torch.distributed import Store

    from rlcli.config.resolved import Resolved
    from rlcli.run_dir.checkpoint import Resume

T = TypeVar("T")
PACKAGES = ("torch", "transformers", "deepspeed")
SHOWN_CAUSES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Report:
    """The values of one rank that are compared. exit_code: of its error; 0 without one."""

    host: str
    facts: Mapping[str, str]
    gpu: str
    restart_count: int
    error: str = ""
    exit_code: int = 0


def agree_on_plan(
    ranks: RankEnv,
    prepare: Callable[[], T],
    facts_of: Callable[[T], Mapping[str, str]],
    gpu_of: Callable[[T], str],
) -> tuple[T, int]:
    """(the result of `prepare`, how often the launcher has restarted the run).

    facts_of: values, by name, that must be the same on every rank. gpu_of: the rank's GPU, if any.
    Raises: UsageError of this rank; LaunchError on rank 0 and on the first rank of every other
    machine if another rank has one, or if facts or versions differ; SystemExit on the rest.
    """
    prepared: T | None = None
    error: UsageError | None = None
    facts: Mapping[str, str] = {}
    gpu = ""
    try:
        prepared = prepare()
        facts, gpu = {**versions(), **facts_of(prepared)}, gpu_of(prepared)
    except UsageError as refused:
        error = refused
    own = _Report(
        host=socket.gethostname(),
        facts=facts,
        gpu=gpu,
        restart_count=ranks.restart_count,
        error=str(error or ""),
        exit_code=0 if error is None else error.exit_code,
    )
    reports = Ranks(ranks.rank, ranks.world_size).gather(own)
    reports_error = ranks.rank == 0 or ranks.local_rank == 0
    if error is not None and (reports_error or reports[0].error != own.error):
        raise error
    found = _refusal(reports)
    if found is not None:
        raise found if reports_error else SystemExit(found.exit_code)
    assert prepared is not None
    return prepared, max(report.restart_count for report in reports)


def versions() -> dict[str, str]:
    """Versions that must be the same on all ranks; Python's without its last number."""
    found = versions_of(PACKAGES)
    return found | {"python": found["python"].rpartition(".")[0]}


def _refusal(reports: Sequence[_Report]) -> LaunchError | None:
    for rank, report in enumerate(reports):
        if report.exit_code:
            return LaunchError(f"rank {rank} on {report.host}: {report.error}")
    for report in reports:
        same = [other for other, found in enumerate(reports) if found.gpu == report.gpu]
        if report.gpu and len(same) > 1:
            return LaunchError(
                f"{named(same)} on {report.host} have the same GPU: start one process for each "
                "GPU, or let CUDA_VISIBLE_DEVICES show each its own."
            )
    found = differences({rank: report.facts for rank, report in enumerate(reports)})
    causes = [f"{name}: {says}" for name, says in found.items()]
    if not causes:
        return None
    shown = "; ".join(causes[:SHOWN_CAUSES])
    more = f" (and {len(causes) - SHOWN_CAUSES} more)" if causes[SHOWN_CAUSES:] else ""
    return LaunchError(
        f"these {len(reports)} processes cannot train together: {shown}{more}.\n"
        "Give every process the same settings, files and packages."
    )


def differences(facts: Mapping[int, Mapping[str, str]], unit: str = "rank") -> dict[str, str]:
    """`A on rank 0; B on ranks 1, 2` for every fact that differs between ranks, by its name."""
    found: dict[str, str] = {}
    for name in sorted({name for each in facts.values() for name in each}):
        numbers: dict[str, list[int]] = {}
        for number, each in facts.items():
            numbers.setdefault(each.get(name, "not given"), []).append(number)
        if len(numbers) > 1:
            parts = [f"{value} on {named(some, unit)}" for value, some in numbers.items()]
            found[name] = "; ".join(parts)
    return found


def agree_on_run(
    ranks: RankEnv,
    resolved: Resolved,
    cwd: Path,
    *,
    restart_count: int,
    launcher_store: Store | None,
) -> tuple[RunDir, Resume]:
    """The run directory, which rank 0 or its agent holds, and the checkpoint to resume from.

    Raises: UsageError on rank 0 if the directory cannot be used; SystemExit on the others.
    """
    run_dir: RunDir | None = None
    error: RlcliError | None = None
    path, code = "", 0
    resume: Resume = "no"
    if ranks.rank == 0:
        try:
            run_dir, resume = hold_run(
                resolved, cwd, restart_count=restart_count, launcher_store=launcher_store
            )
            path = str(run_dir.path)
        except RlcliError as refused:
            error, code = refused, refused.exit_code
    path, resume, code = broadcast_from_rank0([path, resume, code])
    if error is not None:
        raise error
    if code:
        raise SystemExit(code)
    return run_dir or RunDir(Path(path)), resume


def log_path(run_dir: Path, rank: int) -> Path:
    """The log of a rank other than 0."""
    return run_dir / f"rank_{rank}.log"


def write_to_log(run_dir: Path, rank: int) -> None:
    """Redirect stdout and stderr of this process to its log in the run directory."""
    run_dir.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    with log_path(run_dir, rank).open("ab") as log:
        log.write(log_mark(os.getpid()).encode())
        log.flush()
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)


def log_mark(pid: int) -> str:
    """First line of a process's part of a log."""
    return f"--- process {pid} ---\n"
