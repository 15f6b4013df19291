"""`rlcli train`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlcli.cli.arguments import JsonAmongRun
from rlcli.cli.options import RUN, RunRequest, takes_run_options
from rlcli.config.resolved import Resolved
from rlcli.distributed.launch_env import fit_to_env, num_local
from rlcli.distributed.rank_env import RankEnv, read_rank
from rlcli.system.signals import INTERRUPTED
from rlcli.terminal.i18n import translator

if TYPE_CHECKING:
    from rlcli.trainer.run_plan import Plan

DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Check and print, train nothing.", rich_help_panel=RUN),
]


@takes_run_options
def train(request: RunRequest, dry_run: DryRun = False, as_json: JsonAmongRun = False) -> None:
    """Train a model. Options may be written with _ or -.

    From low to high: defaults, presets, files, environment, key=value, options.
    """
    start_run(request.resolve(), dry_run=dry_run, as_json=as_json)


def start_run(resolved: Resolved, *, dry_run: bool, as_json: bool) -> None:
    """Train, or only check and print; ends the process with the session's exit code."""
    from rlcli.setup.resources import refuse_early

    ranks = read_rank(os.environ)
    resolved = fit_to_env(resolved, ranks, os.environ)
    is_rank = ranks is not None
    refuse_early(resolved, os.environ, is_dry=dry_run, is_rank=is_rank)
    try:
        if not dry_run:
            _train(resolved, ranks, as_json=as_json)
        elif ranks is None or ranks.rank == 0:
            _survey(resolved, as_json=as_json, is_rank=is_rank)
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


def _survey(resolved: Resolved, *, as_json: bool, is_rank: bool) -> None:
    from rlcli.cli.banner import banner_lines, summary
    from rlcli.tools.dry_run import survey

    seen = survey(resolved, os.environ, is_rank=is_rank)
    if as_json:
        print(json.dumps(summary(seen), ensure_ascii=False))
    else:
        print("\n".join(map(translator(seen.config.run.lang), banner_lines(seen))))


def _train(resolved: Resolved, ranks: RankEnv | None, *, as_json: bool) -> None:
    if ranks is None:
        _launch_several(resolved)

    from rlcli.cli.banner import banner_lines
    from rlcli.run_dir.path import open_run_dir
    from rlcli.tools.dry_run import launch_notes, summarize_plan
    from rlcli.trainer.run_plan import make_plan
    from rlcli.trainer.session import run_rank, run_session

    def prepare() -> tuple[Plan, list[str]]:
        noted = resolved
        if ranks is None:
            noted = noted.tell(*launch_notes(noted, os.environ, num_processes=1))
        plan = make_plan(noted)
        return plan, banner_lines(summarize_plan(plan))

    if ranks is None:
        run_dir, resume = open_run_dir(resolved, Path.cwd())
        run_dir.probe(resumes=resume != "no")
        plan, banner = prepare()
        outcome = run_session(plan, Path.cwd(), banner, quiet=as_json)
    else:
        outcome = run_rank(ranks, resolved, prepare, Path.cwd(), quiet=as_json)
    if outcome is None:
        return
    if as_json:
        scores = {str(step): score for step, score in outcome.evaluations}
        said = {**outcome.status, "run_dir": str(outcome.run_dir), "eval/pass@1": scores}
        print(json.dumps(said, ensure_ascii=False))
    raise SystemExit(outcome.exit_code)


def _launch_several(resolved: Resolved) -> None:
    """Start and supervise this machine's processes if the run needs several.

    Raises: SystemExit with their exit code.
    """
    train = resolved.config.train
    if train.n_gpus == train.nnodes == 1:
        return  # nvidia-smi may take a second to answer

    from rlcli.doctor.gpu import check_gpus_usable, count_gpus

    num_gpus = count_gpus(train.device, os.environ)
    if num_local(resolved.config, num_gpus) * train.nnodes > 1:
        check_gpus_usable(train.device, os.environ)
        from rlcli.launcher import launch

        raise SystemExit(launch(resolved, os.environ, Path.cwd(), num_gpus=num_gpus))
