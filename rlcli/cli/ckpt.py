"""`rlcli ckpt`."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from rlcli.cli.arguments import Json, RunArgument
from rlcli.terminal.text import age, in_columns

ckpt_app = typer.Typer(help="Checkpoints: list, verify, export.", no_args_is_help=True)


@ckpt_app.command("list")
def list_(run: RunArgument, as_json: Json = False) -> None:
    """The checkpoints of a run and its final model."""
    from rlcli.system.disk import folder_bytes, gib

    rows = []
    for folder in _folders(run):
        size, written = folder_bytes(folder), folder.stat().st_mtime
        rows.append(
            {
                "name": folder.name,
                "path": str(folder),
                "bytes": size,
                "age_s": round(max(0.0, time.time() - written), 1),
                "eval/pass@1": _score(folder),
            }
        )
    if as_json:
        print(json.dumps(rows, ensure_ascii=False))
        return
    lines = [
        [row["name"], gib(row["bytes"]), f"{age(row['age_s'])} ago", _shown(row["eval/pass@1"])]
        for row in rows
    ]
    print("\n".join(in_columns(lines, right=(1, 2))))


def _shown(score: float | None) -> str:
    return "" if score is None else f"pass@1 {score:.1%}"


def _folders(run: str) -> list[Path]:
    """Checkpoints by step, the final model, folders set aside. Raises: CheckpointError."""
    from rlcli.errors import CheckpointError
    from rlcli.run_dir.checkpoint import saved_steps
    from rlcli.run_dir.folder import find_run

    folder = find_run(run, Path.cwd()) / "checkpoints"
    found = [folder / f"step_{step}" for step in saved_steps(folder)]
    found += [path for path in (folder / "final",) if path.is_dir()]
    found += sorted(folder.glob("aside_step_*"))
    if not found:
        raise CheckpointError(f"{folder} holds no checkpoint yet.")
    return found


def _score(folder: Path) -> float | None:
    """The held-out score of the checkpoint's own step."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        scores = dict(state["monitor"]["evaluations"])
        return scores.get(state["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _faults(folder: Path) -> list[str]:
    """Changed files; in a model folder also weights that are missing or unknown to its class."""
    from rlcli.run_dir.checkpoint import damages

    faults = list(damages(folder))
    models = [path for path in (folder, folder / "merged") if _is_model(path)]
    if not faults and models:
        from rlcli.engines.check_saved import problems
        from rlcli.run_dir.folder import RunDir

        trust = RunDir(folder.parent.parent).config().model.trust_remote_code
        for model in models:
            faults += problems(model, trust_remote_code=trust)
    return faults


def _is_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))


@ckpt_app.command()
def verify(run: RunArgument, as_json: Json = False) -> None:
    """Compare every file with its hash, and the final model with its class; exit 1 on a fault."""
    found = {folder: _faults(folder) for folder in _folders(run)}
    # a run that goes on deletes old checkpoints while they are read
    found = {folder: bad for folder, bad in found.items() if folder.is_dir()}
    is_whole = not any(found.values())
    if as_json:
        rows: list[dict[str, Any]] = [
            {"name": folder.name, "ok": not bad, "problems": bad} for folder, bad in found.items()
        ]
        print(json.dumps({"ok": is_whole, "checkpoints": rows}, ensure_ascii=False))
    else:
        for folder, bad in found.items():
            print(f"{folder.name}: {'whole' if not bad else 'damaged'}")
            for problem in bad:
                print(f"  {problem}")
    if not is_whole:
        raise typer.Exit(1)


@ckpt_app.command()
def export(
    run: RunArgument,
    dest: Annotated[Path, typer.Argument(help="Folder to write; new, or empty.")],
    merge_lora: Annotated[
        bool, typer.Option("--merge-lora", help="One model with the adapter merged in.")
    ] = False,
    step: Annotated[
        int | None, typer.Option(help="Checkpoint to take; none: the final model, or the newest.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a Hugging Face folder that transformers and vLLM load."""
    from rlcli.run_dir.folder import find_run
    from rlcli.system.disk import folder_bytes, gib

    path = find_run(run, Path.cwd())

    from rlcli.tools.export import export_model

    done = export_model(path, Path(os.path.expanduser(dest)), step=step, merge_lora=merge_lora)
    size = folder_bytes(done.dest)
    if as_json:
        said = {
            "dest": str(done.dest),
            "source": str(done.source),
            "kind": done.kind,
            "bytes": size,
        }
        print(json.dumps(said, ensure_ascii=False))
    else:
        print(f"{done.kind} of {done.source} -> {done.dest} ({gib(size)})")
