"""`rlcli reward`."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlcli.cli.arguments import JSON_HELP
from rlcli.cli.options import RunRequest, takes_run_options
from rlcli.cli.progress import progress_bar
from rlcli.config.resolved import Resolved
from rlcli.errors import Paused, RlcliError
from rlcli.system.signals import INTERRUPTED
from rlcli.terminal.i18n import translator
from rlcli.terminal.logs import collected
from rlcli.terminal.text import wrap

if TYPE_CHECKING:
    from rlcli.tools.reward_test.planning import Request, TrialPlan
    from rlcli.tools.reward_test.running import Trial

LOG = logging.getLogger(__name__)


reward_app = typer.Typer(help="Try a reward before a run learns from it.", no_args_is_help=True)
TRIAL = "The trial"
Responses = Annotated[
    str | None,
    typer.Option(
        help="File with responses; none: own and other rows' answers.", rich_help_panel=TRIAL
    ),
]
Label = Annotated[
    str | None,
    typer.Option(help="Column with what people say of them.", rich_help_panel=TRIAL),
]
Limit = Annotated[int | None, typer.Option(min=1, help="First rows only.", rich_help_panel=TRIAL)]
Repeat = Annotated[
    int | None,
    typer.Option(min=1, help="Score 20 rows so often; none: 2 for a judge.", rich_help_panel=TRIAL),
]
Save = Annotated[
    Path | None, typer.Option(help="Write every response: FILE.jsonl.", rich_help_panel=TRIAL)
]
Canaries = Annotated[
    bool,
    typer.Option(
        "--canaries/--no-canaries",
        help="Three more calls with answers known to be bad.",
        rich_help_panel=TRIAL,
    ),
]
JsonOfTrial = Annotated[bool, typer.Option("--json", help=JSON_HELP, rich_help_panel=TRIAL)]


@reward_app.command("test")
@takes_run_options
def try_reward(
    request: RunRequest,
    responses: Responses = None,
    label: Label = None,
    limit: Limit = None,
    repeat: Repeat = None,
    save: Save = None,
    as_json: JsonOfTrial = False,
) -> None:
    """Run the reward on data: does it tell right answers from wrong ones?

    Takes train's options. No policy is loaded.
    """
    from rlcli.tools.reward_test.planning import Request

    trial = Request(responses=responses, label=label, limit=limit, repeat=repeat)
    try:
        _try(request.resolve(), trial, save, as_json=as_json)
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


def _try(resolved: Resolved, request: Request, save: Path | None, *, as_json: bool) -> None:
    from rlcli.cli.reward_text import trial_lines
    from rlcli.run_dir.rollout_files import check_save, save_rows
    from rlcli.tools.reward_test.planning import plan_trial
    from rlcli.tools.reward_test.report import saved_rows, summarize
    from rlcli.tools.reward_test.verdicts import verdicts

    file = Path(os.path.expanduser(save)) if save else None
    if file is not None:
        check_save(file)
    say = translator(resolved.config.run.lang)
    plan = plan_trial(resolved, request, os.environ)
    with collected(prefix="note: ", lang=resolved.config.run.lang) as notes:
        for note in plan.notes:
            LOG.info(note)
        trial = _run(plan)
    report = summarize(plan, trial)
    report |= {"verdicts": verdicts(report), "notes": notes}
    if file is not None:
        save_rows(file, saved_rows(plan, trial))
    if as_json:
        print(json.dumps(report, ensure_ascii=False, default=str))
    else:
        words = [line for verdict in report["verdicts"] for line in wrap(say(verdict))]
        print("\n".join([*trial_lines(report), *words]))
    _end(trial, report)


def _run(plan: TrialPlan) -> Trial:
    from rlcli.tools.reward_test.running import run_trial

    if plan.combination.uses("judge"):
        from rlcli.tools.reward_test.price import expected

        asked = expected(plan)
        cost = "" if asked.cost_usd is None else f", about ${asked.cost_usd:.4f}"
        LOG.info(f"the judge is asked up to {asked.calls:,} times{cost}.")
    with progress_bar() as progress:
        return run_trial(plan, env=os.environ, progress=progress)


def _end(trial: Trial, report: dict[str, Any]) -> None:
    """Raises: what ended the trial early; RlcliError where nothing could be scored."""
    done = report["scored"] + report.get("wrong_rows", 0) - report.get("wrong_unscored", 0)
    if isinstance(trial.end, KeyboardInterrupt):
        raise trial.end
    if trial.end is not None:
        first = str(trial.end).partition("\n")[0]
        raise Paused(
            f"{first}\n{done:,} responses were scored before that. "
            "Fix the cause, or give --limit N."
        )
    if not done:
        errors = report["errors"]
        first = errors[0]["error"] if errors else "there is none"
        raise RlcliError(f"no response could be scored. The first error: {first}")


@reward_app.command("judge-check")
@takes_run_options
def judge_check(
    request: RunRequest, canaries: Canaries = True, as_json: JsonOfTrial = False
) -> None:
    """Ask every judge once: key, model, address, speed and price. Turns --use_api_reward on."""
    from rlcli.cli.reward_text import judge_lines
    from rlcli.rewards.judge import check_judge
    from rlcli.tools.reward_test.judges import check_judges

    resolved = request.resolve(use_api_reward=True)
    judge, lang = resolved.config.reward.judge, resolved.config.run.lang
    with collected(prefix="note: ", lang=lang) as notes:
        for note in check_judge(judge, os.environ, lang=lang):
            LOG.info(note)
        try:
            found = check_judges(judge, os.environ, lang=lang, has_canaries=canaries)
        except KeyboardInterrupt:
            raise SystemExit(INTERRUPTED) from None
        reports, doubts, error = found
        if not as_json:
            print("\n".join(line for report in reports for line in judge_lines(report)))
        for note in doubts:
            LOG.warning(note)
    if as_json:
        print(json.dumps({"judges": reports, "notes": notes}, ensure_ascii=False))
    if error is not None:
        raise error
