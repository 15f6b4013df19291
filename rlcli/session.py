"""One session: the run directory held, the run built and trained, its end written down."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcli.build import Plan, build_run, serve_rank
from rlcli.checkpoint import Resume, saved_steps
from rlcli.config.changes import PER_SESSION, TENSORS, changes
from rlcli.config.schema import Config
from rlcli.config.section import leaves
from rlcli.disk_need import check_disk, disk_need
from rlcli.errors import ConfigError, Paused, RankLostError, RlcliError
from rlcli.lang import translator
from rlcli.monitor.run_dir import RunDir
from rlcli.monitor.sign import give_signs
from rlcli.monitor.signals import BY_CTRL_C, INTERRUPTED
from rlcli.report import write_report
from rlcli.run_path import open_run_dir

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from rlcli.crew.lead import Crew
    from rlcli.place import Place
    from rlcli.trainer import Run


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
    place: Place | None = None,
) -> Outcome | None:
    """Train what was planned; None on a rank that only does its share.

    Exit code 0: finished. run.preempt_exit_code: stopped by SIGTERM with a checkpoint. 130: stopped
    by Ctrl-C with one.
    Raises: RlcliError with its own exit code; status.json says the same.
    """
    if place is None:
        run_dir, resume = open_run_dir(plan.resolved, cwd)
        with _group_of_one(plan):
            return _run(plan, cwd, banner, run_dir, resume, quiet=quiet, crew=None)
    from rlcli.crew.lead import Crew
    from rlcli.crew.lines import speaker
    from rlcli.crew.meet import connect, leave_together, own_device, process_group

    if place.rank == 0:
        give_signs(place.run_dir)
    plan = replace(plan, device=own_device(plan.device, place))
    run_dir = RunDir(place.run_dir)
    tell = speaker(plan.config.run.lang)
    with process_group(place, plan.device, tell=tell):
        connections = connect(place, tell=tell)
        if place.rank:
            _leave_signals_to_rank_0()
            _follow(plan, place, connections[0])
            return None
        crew, ended_well = Crew(connections, place.log), False
        try:
            outcome = _run(plan, cwd, banner, run_dir, place.resume, quiet=quiet, crew=crew)
            ended_well = True
        finally:
            crew.dismiss(ended_well=ended_well)
        leave_together()
        return outcome


def _follow(plan: Plan, place: Place, connection: Connection) -> None:
    """A rank that ends with an error ends at once: others may wait for it in a collective."""
    from rlcli.crew.meet import is_broken_collective, leave_together

    try:
        if serve_rank(plan, place, connection):
            leave_together()
    except Exception as error:
        traceback.print_exc()
        sys.stderr.flush()
        is_lost = is_broken_collective(error)  # another rank has left: it is not this one's fault
        code = error.exit_code if isinstance(error, RlcliError) else 1
        os._exit(RankLostError.exit_code if is_lost else code)


def _leave_signals_to_rank_0() -> None:
    """A scheduler may send them to every process of a run, and rank 0 needs all of them to save."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: None)


def _group_of_one(plan: Plan) -> AbstractContextManager[None]:
    """What DeepSpeed and vLLM want of a process that trains alone."""
    if plan.config.train.engine != "deepspeed" and plan.config.rollout.engine != "vllm":
        return nullcontext()
    from rlcli.crew.meet import group_of_one

    return group_of_one(plan.device)


def _run(
    plan: Plan,
    cwd: Path,
    banner: Sequence[str],
    run_dir: RunDir,
    resume: Resume,
    *,
    quiet: bool,
    crew: Crew | None,
) -> Outcome:
    path = run_dir.path
    need = disk_need(plan.config, plan.model_dir, plan.critic_dir)
    if need is not None:
        check_disk(plan.resolved, need, path)
    if crew is None:  # with one, the supervisor holds it
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
            run = build_run(plan, run_dir, resume, quiet=quiet, crew=crew)
        except RankLostError:
            raise  # it is the supervisor that knows whether the run goes on
        except BaseException as error:
            reason = str(error) or type(error).__name__
            resumable = run_dir.has_checkpoint
            state = "paused" if isinstance(error, Paused) else "failed"
            run_dir.write_status(
                state, step, resumable=resumable, reason=reason, num_steps=plan.num_steps
            )
            raise
        code = _train(run, path, [*banner, *(idle or notes)])
        return Outcome(
            exit_code=code,
            run_dir=path,
            status=run_dir.status() or {},
            evaluations=run.monitor.evaluations,
        )
    finally:
        run_dir.release()


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
    had_critic = any(run_dir.checkpoints.glob("step_*/critic.safetensors"))
    if has_critic != had_critic:
        raise ConfigError(
            f"algorithm.advantage={config.algorithm.advantage}, but the run in {run_dir.path} has "
            f"{before.get('algorithm.advantage')}: one has a critic and the other has not.\n"
            "Resume it with the algorithm it had, or choose another --output_dir."
        )
    return notes


def _nothing_left(run_dir: RunDir, resume: Resume, num_steps: int) -> list[str]:
    """A note where the checkpoint to go on from lies at or past the last step."""
    steps = saved_steps(run_dir.checkpoints)
    done = resume if isinstance(resume, int) else max(steps, default=0)
    if done < num_steps:
        return []
    asked = "all of them" if done == num_steps else f"but only {num_steps} are asked for"
    return [
        f"note: {done} steps are done, {asked}: nothing is left to train. Raise train.max_steps or "
        "train.epochs to go on."
    ]


def _train(run: Run, path: Path, banner: Sequence[str]) -> int:
    from rlcli.trainer import train

    monitor = run.monitor
    say = translator(run.config.run.lang)
    try:
        for line in [*banner, f"run directory: {path}"]:
            monitor.console.line(say(line))
        monitor.stop.install()
        done = train(run)
        finished = done >= run.num_steps
        by_ctrl_c = monitor.was_interrupted
        reason = "" if finished else BY_CTRL_C if by_ctrl_c else "SIGTERM"
        monitor.end("finished" if finished else "preempted", done, resumable=True, reason=reason)
        for line in _closing_lines(run, path, done):
            monitor.console.line(say(line))
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
    except BaseException as error:
        reason = str(error) if isinstance(error, RlcliError) else repr(error)
        step = monitor.last_step
        monitor.end("failed", step, resumable=bool(run.checkpoints.steps()), reason=reason)
        raise
    finally:
        run.scorer.close()
        run.sampler.close()
        report = write_report(path, tell=monitor.note)
        if report is not None:
            monitor.console.line(say(f"Report: {report}"))
        monitor.console.close()
        monitor.stop.ignore()
        sys.stdout.flush()


def _closing_lines(run: Run, path: Path, done: int) -> list[str]:
    scores, rewards = run.monitor.evaluations, run.monitor.held_out_rewards
    lines = []
    if len(scores) > 1:
        (_, before), (step, after) = scores[0], scores[-1]
        lines.append(f"Held-out pass@1: {before:.1%} before, {after:.1%} after {step} steps")
    elif not scores and len(rewards) > 1:
        (_, before), (step, after) = rewards[0], rewards[-1]
        lines.append(f"Held-out reward: {before:.4g} before, {after:.4g} after {step} steps")
    spent_usd = run.scorer.state().get("spent_usd")
    if spent_usd:
        lines.append(f"Judge: ${spent_usd:.4f} in all, by list prices")
    if done >= run.num_steps:
        lines.append(f"Model: {path / 'checkpoints' / 'final'}")
    else:
        lines.append(f"Stopped after step {done} of {run.num_steps}.")
        command = f"rlcli runs resume {shlex.quote(str(path))}"
        lines.append(f"Go on with: {command}, or the same command with --resume auto")
    return lines
