"""`rlcli train`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from rlcli.monitor.signals import INTERRUPTED

START, WHAT, HOW, RUN = "Start", "What to train on", "How", "The run"


def _option(panel: str, text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel)


Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[key=value]...", help="Any setting by name.")
]
Algo = Annotated[str | None, _option(START, "Algorithm preset.")]
PresetName = Annotated[str | None, _option(START, "Recipe or algorithm preset.")]
Files = Annotated[list[Path] | None, _option(START, "YAML file.", "--config", "--config-name")]
Ignore = Annotated[bool, _option(START, "Warn of unknown keys.", "--ignore-unsupported")]
Model = Annotated[str | None, _option(WHAT, "Directory or hub name.")]
Data = Annotated[list[str] | None, _option(WHAT, "Training file.")]
ValData = Annotated[list[str] | None, _option(WHAT, "Evaluation file.")]
RewardFn = Annotated[str | None, _option(WHAT, "rules, one rule's name, or FILE:FN.")]
Epochs = Annotated[int | None, _option(HOW, "Passes over the data.")]
MaxSteps = Annotated[int | None, _option(HOW, "Stop after so many steps.")]
Rate = Annotated[float | None, _option(HOW, "Learning rate.")]
BatchSize = Annotated[int | None, _option(HOW, "Prompts per step.")]
KLCoef = Annotated[float | None, _option(HOW, "KL coefficient.")]
Engine = Annotated[str | None, _option(HOW, "auto or torch.")]
Seed = Annotated[int | None, _option(HOW, "Fixes everything.")]
Trust = Annotated[bool | None, _option(HOW, "Run the model's code.", "--trust-remote-code")]
OutputDir = Annotated[str | None, _option(RUN, "Run directory, exactly as given.")]
RunName = Annotated[str | None, _option(RUN, "Name in outputs/.")]
Resume = Annotated[str | None, _option(RUN, "auto, never, STEP or PATH.")]
SaveEvery = Annotated[int | None, _option(RUN, "Steps between checkpoints.")]
Keep = Annotated[int | None, _option(RUN, "Checkpoints kept.")]
Merge = Annotated[bool | None, _option(RUN, "Save a merged model too.", "--merge-lora")]
DryRun = Annotated[bool, _option(RUN, "Check and print, train nothing.", "--dry-run")]
Json = Annotated[bool, _option(RUN, "One JSON object on stdout.", "--json")]
NOT_SETTINGS = {"overrides", "algo", "preset", "config", "dry_run", "as_json", "ignore_unsupported"}


def train(
    context: typer.Context,
    overrides: Overrides = None,
    algo: Algo = None,
    preset: PresetName = None,
    config: Files = None,
    model: Model = None,
    data: Data = None,
    val_data: ValData = None,
    reward: RewardFn = None,
    epochs: Epochs = None,
    max_steps: MaxSteps = None,
    lr: Rate = None,
    batch_size: BatchSize = None,
    kl_coef: KLCoef = None,
    engine: Engine = None,
    seed: Seed = None,
    trust_remote_code: Trust = None,
    output_dir: OutputDir = None,
    run_name: RunName = None,
    resume: Resume = None,
    save_every: SaveEvery = None,
    keep: Keep = None,
    merge_lora: Merge = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    ignore_unsupported: Ignore = False,
) -> None:
    """Train a model. Settings: presets < files < environment < key=value < options."""
    from rlcli.config.sources import resolve

    given = {k: v for k, v in context.params.items() if k not in NOT_SETTINGS}
    flags = {name: None if value in ([], ()) else value for name, value in given.items()}
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
