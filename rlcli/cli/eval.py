"""`rlcli eval`."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rlcli.cli.arguments import Json
from rlcli.cli.data import Field, field_columns
from rlcli.cli.progress import progress_bar
from rlcli.errors import ConfigError
from rlcli.hub import Hub
from rlcli.system.signals import INTERRUPTED
from rlcli.terminal.logs import collected
from rlcli.terminal.text import wrap

if TYPE_CHECKING:
    from rlcli.tools.evaluation.measuring import Sampled
    from rlcli.tools.evaluation.planning import Request

LOG = logging.getLogger(__name__)


Target = Annotated[
    str,
    typer.Argument(
        metavar="RUN|MODEL",
        help="Run directory, name in outputs/, latest, model folder, hub name or "
        "builtin:quickstart.",
    ),
]
Data = Annotated[list[str] | None, typer.Option(help="Data file; none: the run's. Repeatable.")]
Ks = Annotated[str, typer.Option(help="k of pass@k; several with commas.")]
Device = Literal["auto", "cpu", "cuda", "mps"]
Dtype = Literal["auto", "float32", "bfloat16"]
Number = Annotated[
    int | None, typer.Option(min=1, help="Responses per prompt; none: the largest k.")
]
Temperature = Annotated[
    float | None, typer.Option(min=0.0, help="0: greedy; none: 0 for one response, else 1.")
]
Step = Annotated[
    int | None, typer.Option(help="Checkpoint of the run; none: the final model, or newest.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="First rows only.")]
RewardFn = Annotated[
    str | None, typer.Option(help="rules, one rule's name, or FILE:FN; none: the run's.")
]
MaxResponse = Annotated[int | None, typer.Option(min=1, help="Longest response; none: the run's.")]
MaxPrompt = Annotated[int | None, typer.Option(min=1, help="Longest prompt; none: the run's.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Fixes the sampling.")]
Where = Annotated[Device, typer.Option(help="Where to sample.")]
Weights = Annotated[Dtype | None, typer.Option(help="Of the weights.")]
From = Annotated[Hub | None, typer.Option(help="Hub to download from; none: the run's.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run the model's code.")]
Save = Annotated[Path | None, typer.Option(help="Write every response: FILE.jsonl.")]


def eval_(
    target: Target,
    data: Data = None,
    k: Ks = "1",
    n: Number = None,
    temperature: Temperature = None,
    step: Step = None,
    limit: Limit = None,
    reward: RewardFn = None,
    field: Field = None,
    max_response_tokens: MaxResponse = None,
    max_prompt_tokens: MaxPrompt = None,
    seed: Seed = None,
    device: Where = "auto",
    dtype: Weights = None,
    hub: From = None,
    trust_remote_code: Trust = False,
    save: Save = None,
    as_json: Json = False,
) -> None:
    """Unbiased pass@k of a run or a model, with a confidence interval."""
    from rlcli.tools.evaluation.measuring import check_scored
    from rlcli.tools.evaluation.planning import Request

    settings = {
        "data.val": data,
        "data.fields": field_columns(field) if field else None,
        "data.max_response_tokens": max_response_tokens,
        "data.max_prompt_tokens": max_prompt_tokens,
        "reward.fn": reward,
        "run.seed": seed,
        "train.device": device,
        "model.dtype": dtype,
        "model.hub": hub,
        "model.trust_remote_code": trust_remote_code or None,
    }
    request = Request(
        target=target,
        k=_ks(k),
        n=n,
        temperature=temperature,
        step=step,
        limit=limit,
        settings={key: value for key, value in settings.items() if value is not None},
    )
    try:
        report, sampled = _evaluate(request, save)
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    print(json.dumps(report, ensure_ascii=False) if as_json else "\n".join(_lines(report)))
    check_scored(sampled)


def _ks(text: str) -> tuple[int, ...]:
    """Ascending, none twice. Raises: ConfigError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) for part in parts):
        raise ConfigError(f"--k {text}: expected whole numbers from 1, such as --k 1,8.")
    return tuple(sorted({int(part) for part in parts}))


def _evaluate(request: Request, save: Path | None) -> tuple[dict[str, Any], Sampled]:
    from rlcli.run_dir.rollout_files import check_save, save_rows
    from rlcli.tools.evaluation.measuring import run_evaluation, saved_rows, summarize
    from rlcli.tools.evaluation.planning import plan_evaluation

    file = Path(os.path.expanduser(save)) if save else None
    if file is not None:
        check_save(file)
    plan = plan_evaluation(request, Path.cwd(), os.environ)
    with collected(prefix="note: ") as notes, progress_bar() as progress:
        for note in plan.notes:
            LOG.info(note)
        sampled = run_evaluation(plan, env=os.environ, progress=progress)
    if file is not None:
        save_rows(file, saved_rows(sampled))
    return {**summarize(plan, sampled), "notes": notes}, sampled


def _lines(report: dict[str, Any]) -> list[str]:
    rows, n = report["rows"], report["n"]
    head = (
        f"{report['model']}: {rows} prompts, n={n}, temperature {report['temperature']:g}, "
        f"seed {report['seed']}"
    )
    lines = wrap(head)
    for name, counted in report["counted"].items():
        lines.append(f"{name:<9}{_score_text(report[name], report['ci95'][name], counted, rows)}")
    lines += [f"ci: {report['ci_method']}"] if report["reward_mean"] is not None else []
    mean = report["reward_mean"]
    lines += [
        f"reward: {'none' if mean is None else f'{mean:.4g} on average'}; "
        f"{report['unscored']} of {rows * n} responses unscored",
        f"length: {report['response_length_mean']:.1f} tokens on average, "
        f"{report['truncated_share']:.1%} cut at {report['max_response_tokens']}",
        f"{report['wall_s']:.1f} s, {report['tokens_per_s']:,.0f} tokens/s",
    ]
    return lines


def _score_text(
    value: float | None, ends: list[float] | None, counted: int | None, rows: int
) -> str:
    if counted is None:
        return "none: the score of a judge or a reward model has no pass mark"
    if value is None or ends is None:
        return f"none: no prompt has enough scored responses ({counted} of {rows} prompts)"
    low, high = ends
    spread = "" if low < high or counted == 1 else "; all alike, so no spread is seen"
    return f"{value:6.1%}  95 % CI {low:.1%} to {high:.1%}, {counted} of {rows} prompts{spread}"
