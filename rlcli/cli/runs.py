"""`rlcli runs`."""

from __future__ import annotations

import json
import os
import shlex
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from rlcli.cli.arguments import Json, RunArgument
from rlcli.terminal.text import age, in_columns

runs_app = typer.Typer(help="Runs: list, look at, go on with.", no_args_is_help=True)


@runs_app.command("list")
def list_(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Folders of runs; none: outputs.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Every run in one line, the one written last first."""
    from rlcli.errors import RunDirError
    from rlcli.run_dir.folder import list_runs

    for folder in folders or []:
        if not folder.is_dir():
            raise RunDirError(f"{folder} is not a directory. Give a folder that holds runs.")
    places = folders or [Path("outputs")]
    rows = [_row(run) for folder in places for run in list_runs(folder)]
    if as_json:
        print(json.dumps(rows, ensure_ascii=False))
    elif not rows:
        print(f"no runs in {', '.join(map(str, places))}")
    else:
        print("\n".join(_table(rows)))


def _row(path: Path) -> dict[str, Any]:
    from rlcli.run_dir.folder import RunDir, last_written

    run = RunDir(path)
    status, metrics = run.status() or {}, run.last_metrics()
    return {
        "name": path.resolve().name,
        "path": str(path),
        "state": run.state(),
        "step": status.get("step", 0),
        "num_steps": status.get("num_steps"),
        "reward_mean": metrics.get("reward_mean"),
        "eval/pass@1": metrics.get("eval/pass@1"),
        "age_s": round(max(0.0, time.time() - last_written(path)), 1),
    }


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines with the name last, so that it is never cut."""
    from rlcli.run_dir.folder import in_words

    lines = [["state", "step", "reward", "pass@1", "age", "run"]]
    for row in rows:
        reward, score = row["reward_mean"], row["eval/pass@1"]
        lines.append(
            [
                in_words(row["state"]),
                steps(row),
                "-" if reward is None else f"{reward:.3f}",
                "-" if score is None else f"{score:.1%}",
                age(row["age_s"]),
                row["name"],
            ]
        )
    return in_columns(lines)


def steps(row: dict[str, Any]) -> str:
    """`12/40`, or `12` where the end is not known."""
    return f"{row['step']}" if row["num_steps"] is None else f"{row['step']}/{row['num_steps']}"


@runs_app.command()
def status(run: RunArgument, as_json: Json = False) -> None:
    """How a run stands, what it left, and the line that goes on with it."""
    from rlcli.run_dir.folder import find_run, in_words

    path = find_run(run, Path.cwd())
    found = _status(path, run)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    reason = f" ({found['reason'].splitlines()[0]})" if found["reason"] else ""
    state = f"{in_words(found['state'])}{reason}"
    print(f"{path}: {state}, step {steps(found)}, {age(found['age_s'])} ago")
    if found["held_by"]:
        print(f"held by: {found['held_by']}")
    if found["metrics"]:
        print("last metrics:")
        width = max(map(len, found["metrics"]))
        for key, value in found["metrics"].items():
            print(f"  {key:<{width}}  {value:.6g}")
    for line in found["health"]:
        print(line)
    saved = ", ".join(found["checkpoints"]) or "none"
    print(f"checkpoints: {saved}")
    print(f"on disk: {found['size']}")
    if found["resume"]:
        print(f"go on with: {found['resume']}")


def _status(path: Path, named: str) -> dict[str, Any]:
    from rlcli.monitor.health import last_verdicts
    from rlcli.run_dir.checkpoint import saved_steps
    from rlcli.run_dir.folder import RunDir
    from rlcli.system.disk import folder_bytes, gib

    run = RunDir(path)
    said = run.status() or {}
    checkpoints = [f"step_{step}" for step in saved_steps(run.checkpoints)]
    if (run.checkpoints / "final").is_dir():
        checkpoints.append("final")
    row, size = _row(path), folder_bytes(path)
    stands_still = row["state"] not in ("running", "starting", "finished")
    name = shlex.quote(row["name"] if path == Path("outputs") / row["name"] else str(path))
    return {
        **row,
        "resumable": bool(said.get("resumable")) or run.has_checkpoint,
        "reason": said.get("reason") or "",
        "held_by": run.holder(),
        "metrics": run.last_metrics(),
        "health": last_verdicts(path),
        "checkpoints": checkpoints,
        "bytes": size,
        "size": gib(size),
        "resume": f"rlcli runs resume {name}" if stands_still else None,
    }


@runs_app.command()
def resume(
    run: RunArgument,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value]...", help="Settings to change.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Go on with a run from its newest checkpoint, with the settings it had."""
    from rlcli.cli.train import start_run
    from rlcli.config.compare import without_settings
    from rlcli.config.resolver import resolve
    from rlcli.run_dir.folder import RunDir, find_run
    from rlcli.terminal.i18n import VARIABLE

    path = find_run(run, Path.cwd())
    directory = RunDir(path)
    directory.config()
    said = directory.status() or {}
    is_whole = (path / "checkpoints" / "final").is_dir()
    if said.get("state") == "finished" and is_whole and not overrides:
        _say_finished(path, said, as_json=as_json)
        return
    resolved = resolve(
        flags={"output_dir": str(path), "resume": "auto"},
        overrides=overrides or [],
        files=[path / "config.json"],
        env=without_settings(os.environ, keep=[VARIABLE]),
    )
    start_run(resolved, dry_run=False, as_json=as_json)


def _say_finished(path: Path, status: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({**status, "run_dir": str(path)}, ensure_ascii=False))
        return
    print(f"{path} is finished: {status['step']} steps are done, nothing is left to train.")
    print(f"Model: {path / 'checkpoints' / 'final'}")
    print(f"To train further: rlcli runs resume {shlex.quote(str(path))} train.max_steps=N")
