"""One session: the run directory held, the run built and trained, its end written down."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcli.config.base import leaves
from rlcli.config.changes import PER_SESSION, TENSORS, changes
from rlcli.config.schema import Config
from rlcli.data.sets import val_name
from rlcli.distributed.facts import gather_facts
from rlcli.distributed.process_count import check_ranks
from rlcli.errors import (
    ConfigError,
    Paused,
    RankError,
    RankLostError,
    RewardError,
    RlcliError,
    TrainingError,
)
from rlcli.monitor.monitor import Monitor
from rlcli.plan.out_of_memory import is_out_of_memory, out_of_memory_error
from rlcli.report import write_report
from rlcli.run_dir.checkpoint import Resume, holds_critic, saved_steps
from rlcli.run_dir.disk_usage import check_disk, disk_need
from rlcli.run_dir.find_run import open_run_dir
from rlcli.run_dir.folder import RunDir
from rlcli.run_dir.heartbeat import start_heartbeat
from rlcli.system.hardware import usable_cores
from rlcli.system.signals import BY_CTRL_C, INTERRUPTED, StopRequest
from rlcli.terminal.i18n import translator
from rlcli.terminal.logs import QUIET, Shown, show_with, to_stderr
from rlcli.terminal.text import progress_line
from rlcli.trainer.build import build_run
from rlcli.trainer.run_plan import Plan, expects_cuda

if TYPE_CHECKING:
    import torch
    from torch.distributed import Store

    from rlcli.config.resolved import Resolved
    from rlcli.distributed.live_ranks import LiveRanks
    from rlcli.distributed.rank_env import RankEnv
    from rlcli.trainer.run import Run

LEAVE_S = 60.0
"""How long a rank waits for rank 0 to end, if an error ends all ranks together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a session ended. status: what status.json says."""

    exit_code: int
    run_dir: Path
    status: dict[str, Any]
    evaluations: list[tuple[int, float]]


def run_session(
    plan: Plan,
    cwd: Path,
    banner: Sequence[str],
    *,
    quiet: bool = False,
    stop: StopRequest | None = None,
) -> Outcome:
    """Train what was planned, in this process alone.

    stop: receives the signals that end the run early; by default they end this process too.

    Exit code 0: finished. run.preempt_exit_code: stopped by SIGTERM with a checkpoint. 130: stopped
    by Ctrl-C with one.
    Raises: RlcliError with its own exit code; status.json says the same.
    """
    run_dir, resume = open_run_dir(plan.resolved, cwd)
    with _group_of_one(plan):
        return _run(plan, cwd, banner, run_dir, resume, quiet=quiet, is_held=False, stop=stop)


def run_rank(
    ranks: RankEnv,
    resolved: Resolved,
    prepare: Callable[[], tuple[Plan, Sequence[str]]],
    cwd: Path,
    *,
    quiet: bool = False,
) -> Outcome | None:
    """Train as one rank of several; the outcome on rank 0, None on the others.

    prepare: returns the plan and its banner. Exit codes and errors are those of `run_session`.
    """
    from rlcli.distributed.agree import agree_on_plan, agree_on_run, write_to_log
    from rlcli.distributed.process_group import gpu_id, own_device, process_group

    show_with(Shown(to_stderr, lang=resolved.config.run.lang, rank=ranks.rank))
    if ranks.world_size == 1:
        return _run_only_rank(ranks, prepare, cwd, quiet=quiet)
    progress = progress_line(translator(resolved.config.run.lang))
    is_cuda = expects_cuda(resolved.config)
    with process_group(ranks, is_cuda=is_cuda, progress=progress) as meeting:
        ranks = meeting.ranks

        def checked() -> tuple[Plan, Sequence[str], torch.device]:
            check_ranks(resolved, ranks)
            plan, banner = prepare()
            return plan, banner, own_device(plan.device, ranks)

        (plan, banner, device), restarts = agree_on_plan(
            ranks,
            checked,
            lambda made: gather_facts(made[0].resolved, num_gpus=int(is_cuda)),
            lambda made: gpu_id(made[2]),
        )
        run_dir, resume = agree_on_run(
            ranks,
            plan.resolved,
            cwd,
            restart_count=restarts,
            launcher_store=meeting.launcher_store,
        )
        _share_cores(ranks, device)
        if ranks.rank:
            write_to_log(run_dir.path, ranks.rank)
        plan, store = replace(plan, device=device), meeting.store
        return train_together(plan, ranks, run_dir, resume, cwd, banner, quiet=quiet, store=store)


def _run_only_rank(
    ranks: RankEnv,
    prepare: Callable[[], tuple[Plan, Sequence[str]]],
    cwd: Path,
    *,
    quiet: bool,
) -> Outcome:
    """Run as the only process of a launcher, which may restart it alone or with others."""
    from rlcli.distributed.known_run import hold_run
    from rlcli.distributed.process_group import open_store

    plan, banner = prepare()
    run_dir, resume = hold_run(
        plan.resolved,
        cwd,
        restart_count=ranks.restart_count,
        launcher_store=open_store(ranks)[1] if ranks.has_launcher_store else None,
    )
    with _group_of_one(plan):
        return _run(plan, cwd, banner, run_dir, resume, quiet=quiet)


def _share_cores(rank_env: RankEnv, device: torch.device) -> None:
    """Give each rank its share of the cores, unless OMP_NUM_THREADS is set."""
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        import torch

        share = max(1, usable_cores() // (rank_env.local_world_size or 1))
        os.environ["OMP_NUM_THREADS"] = str(share)  # models that choose threads read it
        torch.set_num_threads(share)


def train_together(
    plan: Plan,
    rank_env: RankEnv,
    run_dir: RunDir,
    resume: Resume,
    cwd: Path,
    banner: Sequence[str],
    *,
    quiet: bool,
    store: Store,
) -> Outcome | None:
    """Train on this rank, once all ranks are connected; the outcome on rank 0.

    store: by which the ranks met.
    """
    from rlcli.distributed.live_ranks import LiveRanks

    if rank_env.rank == 0:
        start_heartbeat(run_dir.path)
    ranks = LiveRanks(rank_env, store, run_dir.path)
    if rank_env.rank:
        ranks.watch.pass_on_stops()
        _train_on(plan, run_dir, resume, ranks)
        return None

    def begin(run: Run) -> None:
        monitor = _monitor_of(run)
        monitor.stop.install()
        ranks.watch.stop = monitor.stop

    try:
        outcome = _run(
            plan,
            cwd,
            banner,
            run_dir,
            resume,
            quiet=quiet,
            ranks=ranks,
            on_built=begin,
        )
        with ranks.explained():
            ranks.gather(None)
        return outcome
    finally:
        ranks.watch.dismiss()
        ranks.close()


def _train_on(plan: Plan, run_dir: RunDir, resume: Resume, ranks: LiveRanks) -> None:
    """Train on a rank other than 0.

    An error of this rank alone ends its process at once: others may wait for it in a collective.
    """
    from rlcli.trainer.loop import train

    try:
        with ranks.explained():
            run = build_run(plan, run_dir, resume, ranks=ranks)
        try:
            with ranks.explained():
                train(run)
        finally:
            run.scorer.close()
            run.sampler.close()
        with ranks.explained():
            ranks.gather(None)
    except (Paused, RewardError, TrainingError):  # all ranks have it, and rank 0 reports it
        traceback.print_exc()
        ranks.watch.await_dismissal(LEAVE_S)
    except Exception as error:
        traceback.print_exc()
        sys.stderr.flush()
        is_consequence = isinstance(error, RankError | RankLostError)
        code = error.exit_code if isinstance(error, RlcliError) else 1
        os._exit(RankLostError.exit_code if is_consequence else code)
    finally:
        ranks.close()


def needs_process_group(config: Config) -> bool:
    """Whether a process that trains alone needs a process group of torch."""
    return config.train.engine in ("fsdp", "deepspeed") or config.rollout.engine == "vllm"


def _group_of_one(plan: Plan) -> AbstractContextManager[None]:
    """The process group that FSDP, DeepSpeed and vLLM need in a process that trains alone."""
    if not needs_process_group(plan.config):
        return nullcontext()
    from rlcli.distributed.process_group import group_of_one

    return group_of_one(plan.device)


def _run(
    plan: Plan,
    cwd: Path,
    banner: Sequence[str],
    run_dir: RunDir,
    resume: Resume,
    *,
    quiet: bool,
    ranks: LiveRanks | None = None,
    is_held: bool = True,
    stop: StopRequest | None = None,
    on_built: Callable[[Run], object] = lambda run: None,
) -> Outcome:
    """Train in a run directory. is_held: this rank or its agent holds it already."""
    path = run_dir.path
    need = disk_need(plan.config, plan.model_dir, plan.critic_dir)
    if need is not None:
        check_disk(plan.resolved, need, path)
    if not is_held:
        run_dir.hold(resumes=resume != "no")
    try:
        has_critic = plan.critic_dir is not None
        notes: list[str] = []
        idle: list[str] = []
        if resume != "no":
            notes = check_resume(run_dir, plan.config, has_critic=has_critic)
            idle = _nothing_left(run_dir, resume, plan.num_steps)
        if not idle:
            # the settings the checkpoints were trained with are what the next session compares
            run_dir.write_config(plan.config.model_dump(), plan.resolved.sources)
        if path.resolve().parent == (cwd / "outputs").resolve():
            run_dir.link_latest()
        before = run_dir.status()
        step = before["step"] if before else 0
        try:
            with nullcontext() if ranks is None else ranks.explained():
                run = build_run(plan, run_dir, resume, quiet=quiet, ranks=ranks, stop=stop)
        except RankLostError:
            raise  # the launcher decides whether the run goes on
        except BaseException as error:
            reason = str(error) or type(error).__name__
            resumable = run_dir.has_checkpoint
            state = "paused" if isinstance(error, Paused) else "failed"
            run_dir.write_status(
                state, step, resumable=resumable, reason=reason, num_steps=plan.num_steps
            )
            if is_out_of_memory(error):
                raise out_of_memory_error(error, plan.resolved, cwd) from error
            raise
        on_built(run)
        code = _train(run, path, [*banner, *(idle or notes)], plan=plan, cwd=cwd)
        return Outcome(
            exit_code=code,
            run_dir=path,
            status=run_dir.status() or {},
            evaluations=_monitor_of(run).evaluations,
        )
    finally:
        run_dir.release()


def _monitor_of(run: Run) -> Monitor:
    """The monitor of rank 0, the only rank that calls this."""
    assert isinstance(run.monitor, Monitor)
    return run.monitor


def check_resume(run_dir: RunDir, config: Config, *, has_critic: bool) -> list[str]:
    """Notes on what changed since the run was last held.

    Raises: ConfigError when its checkpoints cannot fit these settings.
    """
    if not run_dir.has_checkpoint or not (run_dir.path / "config.json").is_file():
        return []
    before = run_dir.settings()
    notes = []
    for key, old, value in changes(before, leaves(config), free=PER_SESSION):
        if key in TENSORS:
            raise ConfigError(
                f"{key}={value}, but the run in {run_dir.path} has {key}={old}.\n"
                "Resume it with the setting it had, or choose another --output_dir."
            )
        notes.append(f"note: {key} was {old}, is {value} from here on")
    had_critic = any(map(holds_critic, run_dir.checkpoints.glob("step_*")))
    if has_critic != had_critic:
        raise ConfigError(
            f"algorithm.advantage={config.algorithm.advantage}, but the run in {run_dir.path} has "
            f"{before.get('algorithm.advantage')}: one has a critic and the other has not.\n"
            "Resume it with the algorithm it had, or choose another --output_dir."
        )
    return notes


def _nothing_left(run_dir: RunDir, resume: Resume, num_steps: int) -> list[str]:
    """A note if the checkpoint to resume from is at or past the last step."""
    steps = saved_steps(run_dir.checkpoints)
    done = resume if isinstance(resume, int) else max(steps, default=0)
    if done < num_steps:
        return []
    asked = "all of them" if done == num_steps else f"but only {num_steps} are asked for"
    return [
        f"note: {done} steps are done, {asked}: nothing is left to train. Raise train.max_steps or "
        "train.epochs to go on."
    ]


def _train(run: Run, path: Path, banner: Sequence[str], *, plan: Plan, cwd: Path) -> int:
    from rlcli.trainer.loop import train

    monitor = _monitor_of(run)
    say = translator(run.config.run.lang)
    try:
        for line in [*banner, f"run directory: {path}"]:
            monitor.console.line(say(line))
        monitor.stop.install()
        with run.ranks.explained():
            done = train(run)
        finished = done >= run.num_steps
        by_ctrl_c = monitor.was_interrupted
        reason = "" if finished else BY_CTRL_C if by_ctrl_c else "SIGTERM"
        monitor.end("finished" if finished else "preempted", done, resumable=True, reason=reason)
        for line in _closing_lines(run, path, done):
            monitor.console.line(say(line), level=QUIET)
        if finished:
            return 0
        return INTERRUPTED if by_ctrl_c else run.config.run.preempt_exit_code
    except Paused as error:
        resumable = monitor.run_dir.has_checkpoint
        monitor.end("paused", monitor.last_step, resumable=resumable, reason=str(error))
        raise
    except RankLostError as error:
        resumable = monitor.run_dir.has_checkpoint
        monitor.end("running", monitor.last_step, resumable=resumable, reason=str(error))
        raise
    except BaseException as cause:
        is_memory = is_out_of_memory(cause)
        error = out_of_memory_error(cause, plan.resolved, cwd) if is_memory else cause
        reason = str(error) if isinstance(error, RlcliError) else repr(error)
        step = monitor.last_step
        is_interrupt = isinstance(cause, KeyboardInterrupt)
        monitor.end(
            "preempted" if is_interrupt else "failed",
            step,
            resumable=bool(run.checkpoints.steps()),
            reason=BY_CTRL_C if is_interrupt else reason,
        )
        if is_memory:
            raise error from cause
        raise
    finally:
        run.scorer.close()
        run.sampler.close()
        report = write_report(path)
        if report is not None:
            monitor.console.line(say(f"Report: {report}"), level=QUIET)
        monitor.close()
        monitor.stop.ignore()
        sys.stdout.flush()


def _closing_lines(run: Run, path: Path, done: int) -> list[str]:
    monitor = _monitor_of(run)
    scores, rewards = monitor.evaluations, monitor.held_out_rewards
    on = val_name(run.config.data.train, run.config.data.val)
    lines = []
    if len(scores) > 1:
        (_, before), (step, after) = scores[0], scores[-1]
        lines.append(
            f"Held-out pass@1: {before:.1%} before, {after:.1%} after {step} steps on {on}"
        )
    elif not scores and len(rewards) > 1:
        (_, before), (step, after) = rewards[0], rewards[-1]
        lines.append(
            f"Held-out reward: {before:.4g} before, {after:.4g} after {step} steps on {on}"
        )
    spent_usd = run.scorer.state().get("spent_usd")
    if spent_usd:
        lines.append(f"Judge: ${spent_usd:.4f} in all, by list prices")
    lines += monitor.standing_verdicts()
    if done >= run.num_steps:
        lines.append(f"Model: {path / 'checkpoints' / 'final'}")
    else:
        lines.append(f"Stopped after step {done} of {run.num_steps}.")
        command = f"rlcli runs resume {shlex.quote(str(path))}"
        lines.append(f"Go on with: {command}, or the same command with --resume auto")
    return lines
