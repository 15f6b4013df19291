"""`rlcli train`."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from rlcli.cli.arguments import JsonAmongRun
from rlcli.cli.options import RUN, RunRequest, takes_run_options
from rlcli.config.resolved import Resolved
from rlcli.distributed.process_count import fit_to_env
from rlcli.distributed.rank_env import RankEnv, read_rank
from rlcli.doctor.gpu import num_gpus_of_several
from rlcli.system.signals import INTERRUPTED
from rlcli.terminal.i18n import translator

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
    from rlcli.tools.dry_run import banner_lines, summary, survey

    seen = survey(resolved, os.environ, is_rank=is_rank)
    if as_json:
        print(json.dumps(summary(seen), ensure_ascii=False))
    else:
        print("\n".join(map(translator(seen.config.run.lang), banner_lines(seen))))


def _train(resolved: Resolved, ranks: RankEnv | None, *, as_json: bool) -> None:
    if ranks is None:
        _launch_several(resolved)

    from rlcli.run_dir.find_run import open_run_dir
    from rlcli.tools.dry_run import prepare
    from rlcli.trainer.session import run_rank, run_session

    if ranks is None:
        run_dir, resume = open_run_dir(resolved, Path.cwd())
        run_dir.probe(resumes=resume != "no")
        plan, banner = prepare(resolved, os.environ, is_rank=False)
        outcome = run_session(plan, Path.cwd(), banner, quiet=as_json)
    else:
        prepare_rank = partial(prepare, resolved, os.environ, is_rank=True)
        outcome = run_rank(ranks, resolved, prepare_rank, Path.cwd(), quiet=as_json)
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
    num_gpus = num_gpus_of_several(resolved, os.environ)
    if num_gpus is not None:
        from rlcli.launcher import launch

        raise SystemExit(launch(resolved, os.environ, Path.cwd(), num_gpus=num_gpus))
