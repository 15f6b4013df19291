"""Find a run's directory and the checkpoint to resume from."""

from __future__ import annotations

import os
import time
from pathlib import Path

from rlcli import hub
from rlcli.config.resolved import Resolved
from rlcli.config.schema import Config
from rlcli.errors import CheckpointError, RunDirError
from rlcli.run_dir.checkpoint import Resume, saved_steps, step_of
from rlcli.run_dir.folder import RunDir


def open_run_dir(resolved: Resolved, cwd: Path) -> tuple[RunDir, Resume]:
    """The directory that `find_run_dir` finds; its errors name the setting it comes from."""
    path, resume = find_run_dir(resolved.config, cwd)
    name = resolved.config.run.name
    if name is not None and path == cwd / "outputs" / name:
        cure = f"choose another name than {resolved.where('run.name')}"
        return RunDir(path, elsewhere=cure), resume
    return RunDir(path), resume


def check_name(config: Config) -> None:
    """Raises: RunDirError if run.name is not a valid folder name."""
    name = config.run.name
    if name is None:
        return
    is_plain = Path(name).name == name and name.isprintable()
    if not is_plain or name in ("..", "checkpoints"):
        shown = name if name.isprintable() else repr(name)
        raise RunDirError(f"run.name={shown} is no name for a folder. Use letters and digits.")


def find_run_dir(config: Config, cwd: Path) -> tuple[Path, Resume]:
    """(run directory, checkpoint to resume from).

    Raises: RunDirError if run.resume names no run that can be resumed; CheckpointError if it names
    a step without a checkpoint.
    """
    check_name(config)
    folder, resume = _find(config, cwd)
    if isinstance(resume, int):
        _check_step(cwd / folder, resume)
    return folder, resume


def _find(config: Config, cwd: Path) -> tuple[Path, Resume]:
    run = config.run
    folder = Path(os.path.expanduser(run.output_dir)) if run.output_dir else None
    if run.resume in ("never", "auto") or _is_step(run.resume):
        if folder is None and run.resume != "never":
            folder = _latest_run(cwd)
        folder = folder or cwd / "outputs" / (run.name or _run_name(config))
        if _is_step(run.resume):
            return folder, int(run.resume)
        return folder, "newest" if run.resume == "auto" else "no"
    path = Path(os.path.expanduser(run.resume)).resolve()
    if folder is not None and folder.resolve() not in (path, path.parent.parent):
        raise RunDirError(
            f"run.resume={run.resume} goes on in its own directory, and run.output_dir={folder} "
            "is another. Give one of the two."
        )
    if (step := step_of(path)) is not None and path.parent.name == "checkpoints":
        return path.parent.parent, step
    if (path / "checkpoints").is_dir():
        return path, "newest"
    raise RunDirError(
        f"run.resume={run.resume} is neither auto, never, a step, a run directory nor a "
        "checkpoint (RUN/checkpoints/step_N)."
    )


def _check_step(folder: Path, step: int) -> None:
    """Raises: CheckpointError if `step` has no checkpoint; one being replaced counts."""
    checkpoints = folder / "checkpoints"
    if any((checkpoints / f"{prefix}step_{step}").is_dir() for prefix in ("", ".old-")):
        return
    steps = saved_steps(checkpoints)
    if not steps:
        place = folder if folder.is_dir() else folder.parent
        raise CheckpointError(
            f"run.resume={step}: {place} has no checkpoint of step {step}, nor any other.\n"
            "Name the run with --output_dir."
        )
    available = ", ".join(map(str, steps))
    raise CheckpointError(
        f"run.resume={step}: {checkpoints} has no checkpoint of step {step}; it has: {available}.\n"
        "Give --resume one of these or auto, and --output_dir for another run."
    )


def _is_step(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _latest_run(cwd: Path) -> Path | None:
    link = cwd / "outputs" / "checkpoints"
    return link.resolve().parent if link.is_symlink() and link.exists() else None


def _run_name(config: Config) -> str:
    model = config.model.path.removeprefix(hub.BUILTIN).rstrip("/").rsplit("/", 1)[-1]
    return f"{config.algorithm.name}-{model}-{time.strftime('%Y%m%d-%H%M%S')}"
