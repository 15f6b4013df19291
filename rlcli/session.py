"""One session: the run directory held, the run built and trained, its end written down."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcli.build import Plan, build_run, find_run_dir
from rlcli.config.schema import Config
from rlcli.errors import ConfigError, Paused, RlcliError
from rlcli.monitor.run_dir import RunDir
from rlcli.monitor.signals import INTERRUPTED

if TYPE_CHECKING:
    from rlcli.trainer import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a session ended. exit_code 0 or 130; status: what status.json says."""

    exit_code: int
    run_dir: Path
    status: dict[str, Any]
    evaluations: list[tuple[int, float]]


def run_session(plan: Plan, cwd: Path, banner: Sequence[str], *, quiet: bool = False) -> Outcome:
    """Train what was planned.

    Exit code 0: finished, or stopped by SIGTERM with a checkpoint. 130: stopped by Ctrl-C with one.
    Raises: RlcliError with its own exit code; status.json says the same.
    """
    path, resume = find_run_dir(plan.config, cwd)
    run_dir = RunDir(path)
    run_dir.hold(resumes=resume != "no")
    try:
        has_critic = plan.critic_dir is not None
        changes = []
        if resume != "no":
            changes = check_resume(run_dir, plan.config, has_critic=has_critic)
        run_dir.write_config(plan.config.model_dump(), plan.resolved.sources)
        if path.parent == cwd / "outputs":
            run_dir.link_latest()
        before = run_dir.status()
        step = before["step"] if before else 0
        try:
            run = build_run(plan, run_dir, resume, quiet=quiet)
        except BaseException as error:
            reason = str(error) or type(error).__name__
            resumable = run_dir.has_checkpoint
            run_dir.write_status("failed", step, resumable=resumable, reason=reason)
            raise
        code = _train(run, path, [*banner, *changes])
        return Outcome(
            exit_code=code,
            run_dir=path,
            status=run_dir.status() or {},
            evaluations=run.monitor.evaluations,
        )
    finally:
        run_dir.release()


FIXED = ("model.path", "lora.rank", "lora.targets", "critic.path")
"""Settings that say which tensors a checkpoint holds."""
FREE = ("run.", "reward.timeout_s", "reward.workers", "train.max_steps", "train.epochs")
"""Settings whose change needs no word."""


def check_resume(run_dir: RunDir, config: Config, *, has_critic: bool) -> list[str]:
    """Notes on what changed since the run was last held.

    Raises: ConfigError when its checkpoints cannot fit these settings.
    """
    file = run_dir.path / "config.json"
    if not run_dir.has_checkpoint or not file.is_file():
        return []
    before = json.loads(file.read_text(encoding="utf-8"))
    notes = []
    for section, values in config.model_dump(mode="json").items():
        for name, value in values.items():
            key, old = f"{section}.{name}", before.get(section, {}).get(name)
            if value == old or key.startswith(FREE):
                continue
            if key in FIXED:
                raise ConfigError(
                    f"{key}={value}, but the run in {run_dir.path} has {key}={old}.\n"
                    "Resume it with the setting it had, or choose another --output_dir."
                )
            notes.append(f"note: {key} was {old}, is {value} from here on")
    had_critic = any(run_dir.checkpoints.glob("step_*/critic.safetensors"))
    if has_critic != had_critic:
        raise ConfigError(
            f"algorithm.advantage={config.algorithm.advantage}, but the run in {run_dir.path} has "
            f"{before['algorithm']['advantage']}: one has a critic and the other has not.\n"
            "Resume it with the algorithm it had, or choose another --output_dir."
        )
    return notes


def _train(run: Run, path: Path, banner: Sequence[str]) -> int:
    from rlcli.trainer import train

    monitor = run.monitor
    try:
        for line in [*banner, f"run directory: {path}"]:
            monitor.console.line(line)
        monitor.stop.install()
        done = train(run)
        finished = done >= run.num_steps
        reason = "" if finished else "Ctrl-C" if monitor.was_interrupted else "SIGTERM"
        monitor.end("finished" if finished else "preempted", done, resumable=True, reason=reason)
        for line in _closing_lines(run, path, done):
            monitor.console.line(line)
        return INTERRUPTED if monitor.was_interrupted and not finished else 0
    except Paused as error:
        resumable = monitor.run_dir.has_checkpoint
        monitor.end("paused", monitor.last_step, resumable=resumable, reason=str(error))
        raise
    except BaseException as error:
        reason = str(error) if isinstance(error, RlcliError) else repr(error)
        step = monitor.last_step
        monitor.end("failed", step, resumable=bool(run.checkpoints.steps()), reason=reason)
        raise
    finally:
        run.scorer.close()
        monitor.console.close()
        sys.stdout.flush()


def _closing_lines(run: Run, path: Path, done: int) -> list[str]:
    scores = run.monitor.evaluations
    lines = []
    if len(scores) > 1:
        (_, before), (step, after) = scores[0], scores[-1]
        lines.append(f"Held-out pass@1: {before:.1%} before, {after:.1%} after {step} steps")
    if done >= run.num_steps:
        lines.append(f"Model: {path / 'checkpoints' / 'final'}")
    else:
        lines.append(f"Stopped after step {done} of {run.num_steps}.")
        lines.append(f"Go on with: --output_dir {path} --resume auto, and the same settings")
    return lines
