"""The one process of a machine that starts a run's ranks, watches them and starts them again."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from rlcli import preflight
from rlcli.config.resolved import Resolved
from rlcli.lang import translator
from rlcli.launch import check_processes, num_local, read_launch
from rlcli.machine import usable_cores
from rlcli.run_path import open_run_dir
from rlcli.supervisor.facts import gather_facts
from rlcli.supervisor.follower import follow
from rlcli.supervisor.job import Job, Limits
from rlcli.supervisor.leader import lead
from rlcli.supervisor.record import Record, held
from rlcli.text import progress_line

DEFAULT_LIMITS = Limits()

__all__ = ["supervise"]


def supervise(
    resolved: Resolved,
    env: Mapping[str, str],
    cwd: Path,
    *,
    num_gpus: int,
    command: Sequence[str] | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> int:
    """The exit code of a run whose ranks this process has started and watched to their end.

    num_gpus: those that the run may use here. command: what a rank is; none: this command line
    again.

    Raises: UsageError where ranks need not be started; TrainingError where a node was lost.
    """
    config = resolved.config
    launch = read_launch(config, env)
    cores, here = usable_cores(), num_local(config, num_gpus)
    check_processes(
        resolved, launch, num_processes=here, num_visible_gpus=num_gpus, num_cores=cores
    )
    job = Job(
        command=tuple(command or (sys.executable, "-m", "rlcli.cli.main", *sys.argv[1:])),
        launch=launch,
        num_local=here,
        facts=_facts(resolved, num_gpus=num_gpus) if launch.nnodes > 1 else {},
        env={} if num_gpus else {"OMP_NUM_THREADS": str(max(1, cores // here))},
        preempt_exit_code=config.run.preempt_exit_code,
        limits=limits,
    )
    say = translator(config.run.lang)
    wait = progress_line(say)

    def tell(text: str) -> None:
        # whoever read this may be gone; the run is not
        with suppress(OSError, ValueError):
            print(say(text), file=sys.stderr, flush=True)

    # started with it ignored, this process would never hear of a rank's end
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if launch.node_rank > 0:
        return follow(job, tell=tell, wait=wait)
    run_dir, resume = open_run_dir(resolved, cwd)
    with held(run_dir, resumes=resume != "no"):
        record = Record((cwd / run_dir.path).absolute(), resume)
        return lead(job, record, tell=tell, wait=wait)


def _facts(resolved: Resolved, *, num_gpus: int) -> dict[str, str]:
    return gather_facts(preflight.check_engines(preflight.check(resolved)), num_gpus=num_gpus)
