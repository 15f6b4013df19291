"""rlcli's own launcher: one agent per machine that starts a run's ranks and restarts them."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rlcli.config.resolved import Resolved
from rlcli.distributed.known_run import KnownRun, find_run
from rlcli.distributed.process_count import check_processes, num_local, read_node
from rlcli.distributed.rank_env import AGENT
from rlcli.launcher.job import Job, Limits
from rlcli.launcher.record import held
from rlcli.system.hardware import usable_cores
from rlcli.terminal.i18n import translator
from rlcli.terminal.text import progress_line

DEFAULT_LIMITS = Limits()
LOG_LEVEL = "TORCH_CPP_LOG_LEVEL"

__all__ = ["launch"]


def launch(
    resolved: Resolved,
    env: Mapping[str, str],
    cwd: Path,
    *,
    num_gpus: int,
    command: Sequence[str] | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> int:
    """Start the ranks of this machine, supervise them until the run ends, return its exit code.

    num_gpus: GPUs of this machine that the run may use. command: starts a rank; by default this
    command line.

    Raises: UsageError if ranks cannot be started; TrainingError if a node was lost.
    """
    config = resolved.config
    found, here = read_node(config, env), num_local(config, num_gpus)
    notes = check_processes(
        resolved, env, num_processes=here, num_visible_gpus=num_gpus, num_cores=usable_cores()
    )
    job = Job(
        command=tuple(command or (sys.executable, "-m", "rlcli.cli.main", *sys.argv[1:])),
        launch=found,
        num_local=here,
        preempt_exit_code=config.run.preempt_exit_code,
        limits=limits,
    )
    progress = progress_line(translator(config.run.lang))
    os.environ.update(inherited(notes))
    # with SIGCHLD ignored, as a parent may leave it, a rank's end would go unnoticed
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if found.node_rank > 0:
        return _run_agent(job, None, progress)
    run_dir, run = find_run(resolved, cwd)
    with held(run_dir, resumes=run.resume != "no"):
        return _run_agent(job, replace(run, is_held=True), progress)


def _run_agent(job: Job, run: KnownRun | None, progress: Callable[[str], None]) -> int:
    # torch reads the level once; it logs C++ stacks of errors that the agent reports
    level = os.environ.pop(LOG_LEVEL, "")
    os.environ[LOG_LEVEL] = level or "FATAL"
    from rlcli.launcher.agent import Agent
    from rlcli.launcher.rendezvous import open_store

    os.environ[LOG_LEVEL] = level or "ERROR"
    store, address = open_store(job, progress)
    agent = Agent(job, store, address, run=run)
    agent.run()
    return agent.code


def inherited(notes: Sequence[str] = ()) -> dict[str, str]:
    """Environment variables of every rank. notes: on the processes, for the banner of rank 0."""
    return {
        AGENT: json.dumps({"pid": os.getpid(), "notes": list(notes)}),
        "TORCHELASTIC_SIGNALS_TO_HANDLE": "",  # the agent installs its own handlers
    }
