"""torch's elastic agent with the restart policy of rlcli.

It restarts ranks that were killed or lost contact, not those that ended with an error, and passes
SIGTERM and Ctrl-C to rank 0 instead of ending the ranks.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch.distributed import Store, TCPStore
from torch.distributed.elastic.agent.server.api import (
    RunResult,
    WorkerGroup,
    WorkerSpec,
    WorkerState,
)
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs
from torch.distributed.elastic.multiprocessing.api import SubprocessContext
from torch.distributed.elastic.rendezvous.api import RendezvousError

from rlcli.distributed.known_run import KnownRun, known_run, remember_run
from rlcli.distributed.process_group import launcher_notes
from rlcli.errors import TrainingError, UsageError
from rlcli.launcher.job import End, Job, RestartBudget
from rlcli.launcher.nodes import Nodes
from rlcli.launcher.processes import Processes
from rlcli.launcher.record import Record
from rlcli.launcher.rendezvous import make_rendezvous
from rlcli.launcher.signals import Signals
from rlcli.launcher.watch import Watch
from rlcli.run_dir.heartbeat import clear_heartbeat
from rlcli.system.signals import BY_CTRL_C

# torch logs every signal that it sends; the agent reports those that matter to a user
logging.getLogger("torch.distributed.elastic").addHandler(logging.NullHandler())
logging.getLogger("torch.distributed.elastic").propagate = False
LOG = logging.getLogger(__name__)
RUN_ID = "rlcli"
POLL_S = 0.05
KILL_LIMIT_S = 10
HURRIED_LEAVE_S = 0.5
"""Seconds the other ranks have to exit after a second Ctrl-C."""
UNLIMITED = 2**20
"""Restarts that torch allows; RestartBudget sets the real limit."""


class _NoLogs(LogsSpecs):
    """Disables torch's log files: ranks open their logs once they know the run directory."""

    @property
    def root_log_dir(self) -> str:
        return os.devnull

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        terminal = dict.fromkeys(envs, "")
        return LogsDest(terminal, terminal, error_files=dict.fromkeys(envs, os.devnull))


class Agent(LocalElasticAgent):
    """The agent of one node. code: the exit code of the run, once it has ended.

    address: at which the ranks of this node reach `store`. run: the run whose directory this
    process holds; None on nodes other than 0.
    """

    def __init__(
        self,
        job: Job,
        store: TCPStore,
        address: str,
        *,
        run: KnownRun | None,
    ) -> None:
        run_store = launcher_notes(store, RUN_ID)
        if run is not None:
            remember_run(run_store, Path.cwd(), run)
        self.code = 1
        self.signals = Signals()
        self._job, self._run_store = job, run_store
        self._nodes = Nodes(job, _path) if job.launch.nnodes > 1 else None
        self._record = Record(run)
        self._budget = RestartBudget(job.limits.restarts, window_s=job.limits.window_s)
        self._ranks = Processes({}, node=job.launch.node_rank)
        self._watch: Watch | None = None
        self._lost = ""
        spec = WorkerSpec(
            role="",
            local_world_size=job.num_local,
            rdzv_handler=make_rendezvous(job, store, RUN_ID, self._nodes),
            entrypoint=job.command[0],
            args=tuple(word.replace("$", "$$") for word in job.command[1:]),  # torch substitutes
            max_restarts=UNLIMITED,
            monitor_interval=POLL_S,
            master_addr=address,
            master_port=store.port,
        )
        super().__init__(spec, _NoLogs())

    def run(self, role: str = "") -> RunResult:
        """Supervise until the run ends. Raises: TrainingError if a lost node does not come back."""
        try:
            with self.signals:
                result = super().run(role)  # pyright: ignore[reportCallIssue]
                self.signals.ignore()
            if self._nodes is None or self._nodes.is_controller:
                self._rdzv_handler.shutdown()
            return result
        except RendezvousError as error:
            cause = f"{self._lost or 'a node is lost'}, and no node came in its place"
            self._record.fail(cause)
            raise TrainingError(f"{cause}. Start all nodes again with --resume auto.") from error
        except (KeyboardInterrupt, SystemExit) as stop:
            self._record.preempt("SIGTERM" if isinstance(stop, SystemExit) else BY_CTRL_C)
            raise

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        if self._nodes is None:
            super()._rendezvous(worker_group)  # pyright: ignore[reportCallIssue]
            return
        with self.signals.raising():
            super()._rendezvous(worker_group)  # pyright: ignore[reportCallIssue]
        rank, num = worker_group.group_rank, worker_group.group_world_size
        assert worker_group.store is not None
        assert rank is not None
        assert num is not None
        self._nodes.begin(worker_group.store, self._run_store, rank=rank, num=num)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self._record.start()
        self._forget_signs()
        ids = super()._start_workers(worker_group)  # pyright: ignore[reportCallIssue]
        assert isinstance(self._pcontext, SubprocessContext)
        handlers = self._pcontext.subprocess_handlers
        processes = {
            worker.global_rank: handlers[worker.local_rank].proc for worker in worker_group.workers
        }
        pids = {rank: process.pid for rank, process in processes.items()}
        LOG.debug("ranks started, with their process ids: %s", pids)
        self._ranks = Processes(processes, node=self._job.launch.node_rank)
        is_watched = self._nodes is None or self._nodes.is_controller
        more = (self._ranks, self._nodes, self.signals)
        watch = Watch(self._job, self._record, *more, report=self._report)
        self._watch = watch if is_watched else None
        return ids

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        end = self._follow() if self._watch is None else self._watch.turn()
        if end is None:
            return RunResult(state=WorkerState.HEALTHY)
        if self._watch is not None:
            if not end.has_left:
                self._kill()
            end = self._decided(end)
        if end.starts_again:
            self._lost = end.cause
            return RunResult(state=WorkerState.UNHEALTHY)
        self._finish(end)
        self._remaining_restarts = 0
        return RunResult(state=WorkerState.FAILED)

    def _restart_workers(self, worker_group: WorkerGroup) -> None:
        if self._watch is not None and worker_group.state == WorkerState.HEALTHY:
            self._report("a node has joined; starting again from the newest checkpoint")
        super()._restart_workers(worker_group)  # pyright: ignore[reportCallIssue]

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        self._kill()

    def _shutdown(self, death_sig: Any = None, timeout: int = KILL_LIMIT_S) -> None:
        self._kill()
        if self._nodes is not None:
            self._nodes.close()

    def _kill(self) -> None:
        self._ranks.kill()
        self._forget_signs()

    def _forget_signs(self) -> None:
        if self._record.path is not None:
            clear_heartbeat(self._record.path)

    def _follow(self) -> End | None:
        """On nodes other than 0: report signals and exits to node 0; return what it decides."""
        assert self._nodes is not None
        for number in self.signals.take():
            self._nodes.send("signal", number)
        for death in self._ranks.deaths(self._nodes.run_path):
            self._nodes.send("death", asdict(death))
        if self._nodes.end is not None:
            return self._nodes.end
        self._nodes.check_store()
        for node, why in self._nodes.lost.items():
            cause = f"node {node} is lost: {why}"
            LOG.warning(f"{cause}. Start all nodes again with --resume auto.")
            return End(code=1, cause=cause)
        return None

    def _decided(self, end: End) -> End:
        """Report and record `end`, and set the exit code for the scheduler.

        A restart becomes a final end if the budget is used up or the run was asked to stop.
        """
        if end.starts_again:
            most, minutes = self._budget.most, self._budget.window_s / 60
            if not (number := self._budget.take(time.monotonic())):
                text = f"{end.cause}; giving up after {most} new starts in {minutes:g} minutes"
                end = End(code=1, cause=text)
            elif self.signals.take():
                self._report(f"{end.cause}; not started again, as it was asked to stop")
                end = End(code=self.signals.exit_code)
            else:
                self._announce(end.cause, f"{number} of {most} in {minutes:g} minutes")
                if self._nodes is not None:
                    self._nodes.send_end(end)
                return end
        if end.cause:
            self._report(end.cause)
            if not self._is_void(end.code):
                self._record.fail(end.cause)
        elif self.signals.handed_on:
            reason = BY_CTRL_C if self.signals.is_interrupt else "SIGTERM"
            if self._record.preempt(reason) and not self.signals.is_interrupt:
                return replace(end, code=self._job.preempt_exit_code)
        return end

    def _announce(self, cause: str, often: str) -> None:
        if step := self._record.step:
            self._report(f"{cause}; starting again from step {step} ({often})")
        else:
            self._report(f"{cause}; starting again from the beginning ({often})")

    def _finish(self, end: End) -> None:
        """Let the other ranks exit after rank 0 if the run has anything to keep; kill the rest."""
        self.code = end.code
        limits, is_void = self._job.limits, self._is_void(end.code)
        leave_s = limits.stop_s if self.signals.handed_on else limits.leave_s
        if self.signals.hurried_s:
            leave_s = HURRIED_LEAVE_S
        if self._nodes is not None and self._watch is not None:
            self._nodes.send_end(end)
        if end.has_left and not is_void:
            self._ranks.wait(leave_s, self.signals)
        self._kill()
        if self._nodes is not None:
            self._nodes.leave()

    def _is_void(self, code: int) -> bool:
        """Whether the run has nothing to keep: it was refused or stopped before it began."""
        is_over = code == UsageError.exit_code or bool(self.signals.handed_on)
        return self._watch is not None and is_over and not self._record.has_begun

    def _report(self, text: str) -> None:
        LOG.warning(text)
        self._record.log(text)


def _path(run_store: Store) -> Path | None:
    run = known_run(run_store, Path.cwd())
    return None if run is None else run.path
