"""`rlcli train`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from rlcli.monitor.signals import INTERRUPTED

START = "Start"
WHAT = "What to train on"
HOW = "How"
RUN = "The run"

Text = str | None


def train(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value]...", help="Any setting by name.")
    ] = None,
    algo: Annotated[Text, typer.Option(help="Algorithm preset.", rich_help_panel=START)] = None,
    preset: Annotated[
        Text, typer.Option(help="Recipe or algorithm preset.", rich_help_panel=START)
    ] = None,
    config: Annotated[
        list[Path] | None,
        typer.Option("--config", "--config-name", help="YAML file.", rich_help_panel=START),
    ] = None,
    model: Annotated[
        Text, typer.Option(help="Directory or hub name.", rich_help_panel=WHAT)
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Training file.", rich_help_panel=WHAT)
    ] = None,
    val_data: Annotated[
        list[str] | None, typer.Option(help="Evaluation file.", rich_help_panel=WHAT)
    ] = None,
    reward: Annotated[
        Text, typer.Option(help="rules, one rule's name, or FILE:FN.", rich_help_panel=WHAT)
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the data.", rich_help_panel=HOW)
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option(help="Stop after so many steps.", rich_help_panel=HOW)
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.", rich_help_panel=HOW)] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Prompts per step.", rich_help_panel=HOW)
    ] = None,
    kl_coef: Annotated[
        float | None, typer.Option(help="KL coefficient.", rich_help_panel=HOW)
    ] = None,
    engine: Annotated[Text, typer.Option(help="auto or torch.", rich_help_panel=HOW)] = None,
    seed: Annotated[int | None, typer.Option(help="Fixes everything.", rich_help_panel=HOW)] = None,
    trust_remote_code: Annotated[
        bool | None,
        typer.Option("--trust-remote-code", help="Run the model's code.", rich_help_panel=HOW),
    ] = None,
    output_dir: Annotated[
        Text, typer.Option(help="Run directory, exactly as given.", rich_help_panel=RUN)
    ] = None,
    run_name: Annotated[Text, typer.Option(help="Name in outputs/.", rich_help_panel=RUN)] = None,
    resume: Annotated[
        Text, typer.Option(help="auto, never, STEP or PATH.", rich_help_panel=RUN)
    ] = None,
    save_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints.", rich_help_panel=RUN)
    ] = None,
    keep: Annotated[int | None, typer.Option(help="Checkpoints kept.", rich_help_panel=RUN)] = None,
    merge_lora: Annotated[
        bool | None,
        typer.Option("--merge-lora", help="Save a merged model too.", rich_help_panel=RUN),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and print, train nothing.", rich_help_panel=RUN)
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on stdout.", rich_help_panel=RUN)
    ] = False,
    ignore_unsupported: Annotated[
        bool,
        typer.Option("--ignore-unsupported", help="Warn of unknown keys.", rich_help_panel=START),
    ] = False,
) -> None:
    """Train a model. Settings: presets < files < environment < key=value < options."""
    from rlcli.config.sources import resolve

    flags: dict[str, Any] = {
        "model": model,
        "data": data or None,
        "val_data": val_data or None,
        "reward": reward,
        "epochs": epochs,
        "max_steps": max_steps,
        "lr": lr,
        "batch_size": batch_size,
        "kl_coef": kl_coef,
        "engine": engine,
        "seed": seed,
        "trust_remote_code": trust_remote_code,
        "output_dir": output_dir,
        "run_name": run_name,
        "resume": resume,
        "save_every": save_every,
        "keep": keep,
        "merge_lora": merge_lora,
    }
    resolved = resolve(
        flags=flags,
        overrides=overrides or [],
        files=config or [],
        env=dict(os.environ),
        algo=algo,
        preset=preset,
        ignore_unsupported=ignore_unsupported,
    )
    try:
        _start(resolved, dry_run=dry_run, as_json=as_json)
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


def _start(resolved: Any, *, dry_run: bool, as_json: bool) -> None:
    from rlcli.build import find_run_dir, make_plan
    from rlcli.cli.banner import banner_lines, plan_summary
    from rlcli.monitor.run_dir import RunDir

    if not dry_run:
        path, resume = find_run_dir(resolved.config, Path.cwd())
        RunDir(path).probe(resumes=resume != "no")
    plan = make_plan(resolved)
    if dry_run:
        if as_json:
            print(json.dumps(plan_summary(plan), ensure_ascii=False))
        else:
            print("\n".join(banner_lines(plan)))
        return
    from rlcli.session import run_session

    outcome = run_session(plan, Path.cwd(), banner_lines(plan), quiet=as_json)
    if as_json:
        scores = {str(step): score for step, score in outcome.evaluations}
        said = {**outcome.status, "run_dir": str(outcome.run_dir), "eval/pass@1": scores}
        print(json.dumps(said, ensure_ascii=False))
    raise SystemExit(outcome.exit_code)
