"""The one process of a machine that starts a run's ranks, watches them and starts them again."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from rlcli import preflight
from rlcli.config.resolved import Resolved
from rlcli.doctor.packages import installed
from rlcli.lang import translator
from rlcli.launch import check_processes, num_local, read_launch
from rlcli.machine import ask_driver, usable_cores, visible_gpus
from rlcli.run_path import open_run_dir
from rlcli.supervisor.facts import gather_facts
from rlcli.supervisor.follower import follow
from rlcli.supervisor.job import Job, Limits
from rlcli.supervisor.leader import lead
from rlcli.text import progress_line

DEFAULT_LIMITS = Limits()

__all__ = ["supervise"]


def supervise(
    resolved: Resolved,
    env: Mapping[str, str],
    cwd: Path,
    *,
    command: Sequence[str] | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> int:
    """The exit code of a run whose ranks this process has started and watched to their end.

    command: what a rank is; none: this command line again.

    Raises: UsageError where ranks need not be started; TrainingError where a node was lost.
    """
    config = resolved.config
    launch = read_launch(config, env)
    num_gpus = count_gpus(config.train.device, env)
    cores = usable_cores()
    check_processes(resolved, launch, num_visible_gpus=num_gpus, num_cores=cores)
    here = num_local(config)
    job = Job(
        command=tuple(command or (sys.executable, "-m", "rlcli.cli.main", *sys.argv[1:])),
        launch=launch,
        num_local=here,
        facts=_facts(resolved, num_gpus=num_gpus) if launch.nnodes > 1 else {},
        env={} if num_gpus else {"OMP_NUM_THREADS": str(max(1, cores // here))},
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
    run_dir.probe(resumes=resume != "no")
    return lead(job, (cwd / run_dir.path).absolute(), tell=tell, wait=wait)


def count_gpus(device: str, env: Mapping[str, str]) -> int:
    """GPUs that train.device lets a run use here, counted without torch."""
    torch = installed(("torch",)).get("torch")
    if device not in ("auto", "cuda") or torch is None or torch.build == "cpu":
        return 0
    gpus, _ = ask_driver()
    return len(visible_gpus(gpus, env))


def _facts(resolved: Resolved, *, num_gpus: int) -> dict[str, str]:
    return gather_facts(preflight.check_engines(preflight.check(resolved)), num_gpus=num_gpus)
