"""`rlcli algo compare`."""

from __future__ import annotations

import difflib
import inspect
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlcli.cli.arguments import JsonAmongRun
from rlcli.cli.options import RUN, RunRequest, takes_run_options
from rlcli.errors import Paused
from rlcli.system.signals import INTERRUPTED
from rlcli.terminal.text import short_path, wrap

if TYPE_CHECKING:
    from rlcli.tools.compare import Failure, Job, Result, Stop

LIVE_EVERY_S = 1.0
OURS = ("output_dir", "run_name", "resume")
"""Options that a comparison sets for every run."""

Seeds = Annotated[int, typer.Option(min=1, help="Runs of every algorithm.", rich_help_panel=RUN)]
Out = Annotated[Path | None, typer.Option(help="Directory of the runs.", rich_help_panel=RUN)]


def _with_words(command: Callable[..., None]) -> Callable[..., None]:
    """The command whose help says what its words may be."""
    words = Annotated[
        list[str] | None,
        typer.Argument(metavar="ALGORITHM|RUN|key=value ...", help="What to compare, settings."),
    ]
    signature = inspect.signature(command)
    parameters = {**signature.parameters}
    parameters["overrides"] = parameters["overrides"].replace(annotation=words)
    command.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*parameters.values()]
    )
    command.__annotations__["overrides"] = words
    return command


@_with_words
@takes_run_options
def compare(
    request: RunRequest, seeds: Seeds = 3, out: Out = None, as_json: JsonAmongRun = False
) -> None:
    """Train a recipe under several algorithms, one after the other, or compare runs that are done.

    rlcli algo compare grpo rloo --preset quickstart --seeds 2

    Go on with an interrupted comparison by the same line with its --out.
    """
    from rlcli.cli.comparison_text import report_lines
    from rlcli.tools.compare import Stop, read_result, tabulate

    cwd = Path.cwd()
    algorithms, runs, settings = sort_words(request.overrides, cwd)
    _refuse(request, algorithms, runs, settings)
    results = [read_result(run) for run in runs]
    jobs: list[Job] = []
    failures: list[Failure] = []
    stop = Stop()
    if algorithms:
        folder = out or cwd / "outputs" / time.strftime("compare-%Y%m%d-%H%M%S")
        jobs = plan_jobs(request, settings, algorithms, seeds=seeds, folder=short_path(folder, cwd))
        tell = _tell_stderr if as_json else _tell
        with stop.listening():
            made, failures = make_runs(jobs, stop, tell)
        results += made
    rows = tabulate(results)
    if as_json:
        said = {"rows": [asdict(row) for row in rows], "failed": [asdict(f) for f in failures]}
        said |= {"out": str(jobs[0].folder.parent) if jobs else None}
        stopped = stop.signal is not None or any(failure.is_paused for failure in failures)
        print(json.dumps({**said, "stopped": stopped}, ensure_ascii=False))
    elif rows:
        print("\n".join(report_lines(rows, results)))
    raise SystemExit(exit_code(jobs, stop, failures, results))


def sort_words(words: Sequence[str], cwd: Path) -> tuple[list[str], list[Path], list[str]]:
    """(algorithm presets, run directories, settings), each once.

    Raises: ConfigError for a word that is none of these, with the nearest.
    """
    from rlcli.config.algorithm_selection import algorithm_preset
    from rlcli.config.presets import load_preset
    from rlcli.errors import ConfigError

    algorithms: dict[str, None] = {}
    runs: dict[Path, None] = {}
    settings = []
    for word in words:
        name = algorithm_preset(word)
        if (cwd / Path(os.path.expanduser(word)) / "config.json").is_file() and name is None:
            runs[Path(os.path.expanduser(word))] = None
        elif "=" in word or not word.strip():
            settings.append(word)
        elif name is None:
            raise ConfigError(_stray(word, cwd))
        elif load_preset(name).kind == "recipe":
            raise ConfigError(f"{word} is a recipe, not an algorithm. Write --preset {name}.")
        else:
            algorithms[name] = None
    return [*algorithms], [*runs], settings


def _stray(word: str, cwd: Path) -> str:
    from rlcli.compat.verl.keys import ESTIMATORS_WITHOUT_PRESET
    from rlcli.config.presets import list_presets
    from rlcli.run_dir.folder import list_runs

    if word in ESTIMATORS_WITHOUT_PRESET:
        return (
            f"{word} is an estimator without a preset. Train it with "
            f"algorithm.adv_estimator={word}, then compare the run directories."
        )
    if (cwd / Path(os.path.expanduser(word))).is_dir():
        return f"{word} has no config.json: no run was started in it."
    names = [preset.name for preset in list_presets() if preset.kind == "algorithm"]
    folders = dict.fromkeys([cwd / "outputs", (cwd / Path(os.path.expanduser(word))).parent])
    there = [str(short_path(run, cwd)) for folder in folders for run in list_runs(folder)]
    close = difflib.get_close_matches(word, [*names, *there], n=2)
    close = [run for run in there if Path(run).name == word] or close
    hint = f"Nearest: {', '.join(close)}" if close else f"Algorithms are {', '.join(names)}"
    return (
        f"{word!r:.80} is neither an algorithm, a run directory nor key=value.\n"
        f"{hint}. Options start with --."
    )


def _refuse(
    request: RunRequest, algorithms: list[str], runs: list[Path], settings: list[str]
) -> None:
    """Raises: ConfigError for what a comparison cannot use."""
    from rlcli.errors import ConfigError

    if request.algo is not None:
        raise ConfigError(
            "--algo is not an option here. Name the algorithms without it: rlcli algo compare "
            "grpo rloo."
        )
    if taken := [f"--{name}" for name in OURS if name in request.flags]:
        raise ConfigError(
            f"{', '.join(taken)} cannot be used: each run of a comparison has its own directory "
            "and resumes automatically.\nUse --out DIR."
        )
    if not algorithms and not runs:
        raise ConfigError(
            "nothing to compare. Name algorithms (rlcli algo compare grpo rloo --preset "
            "quickstart) or run directories."
        )
    if not algorithms and (settings or request.flags or request.files or request.preset):
        raise ConfigError(
            "settings have no effect on finished runs. Remove them, or name algorithms to train."
        )


def plan_jobs(
    request: RunRequest,
    settings: list[str],
    algorithms: Sequence[str],
    *,
    seeds: int,
    folder: Path,
) -> list[Job]:
    """A run of every algorithm and seed, its settings checked. Raises: UsageError."""
    from dataclasses import replace

    from rlcli.config.resolved import with_values
    from rlcli.setup.checks import check
    from rlcli.tools.compare import Job

    jobs = []
    words = tuple(request_words(request, settings))
    for algorithm in algorithms:
        asked = replace(request, overrides=settings, algo=algorithm)
        wanted = check(asked.resolve()).config
        first = wanted.run.seed
        jobs += [
            Job(
                algorithm=algorithm,
                seed=seed,
                folder=folder / f"{algorithm}-seed{seed}",
                words=words,
                wanted=with_values(wanted, {"run.seed": seed}),
            )
            for seed in range(first, first + seeds)
        ]
    return jobs


def request_words(request: RunRequest, settings: Sequence[str]) -> list[str]:
    """The command line of `train` that means what `request` means, algorithm and seed aside."""
    from dataclasses import replace

    return replace(request, overrides=[*settings], algo=None).words(without=("seed",))


def make_runs(
    jobs: Sequence[Job], stop: Stop, tell: Callable[[str], None]
) -> tuple[list[Result], list[Failure]]:
    """Every run that is not finished yet, one after the other; a failed one holds up no other.

    After one that paused none is begun: what it waits for, the next would wait for, too.

    Raises: UsageError before the first where a run cannot be gone on with.
    """
    from rlcli.tools.compare import read_result, run_job

    done = {job.folder: job.is_finished() for job in jobs}
    folder = jobs[0].folder.parent
    _make_folder(folder)
    again = f"Go on with the same line and --out {folder}"
    tell(f"{len(jobs)} runs in {folder}")
    results: list[Result] = []
    failures: list[Failure] = []
    refused: set[str] = set()
    for number, job in enumerate(jobs, 1):
        count = f"({number} of {len(jobs)})"
        if job.algorithm in refused:
            tell(f"{job.label}: left out, refused like the seed before {count}")
            continue
        failure = None if done[job.folder] else run_job(job, stop, watch=_live(job, count))
        if stop.signal is not None:
            tell(f"stopped. {again}")
            break
        if failure is not None:
            failures.append(failure)
            refused |= {job.algorithm} if failure.exit_code == 2 else set()
            how = "paused" if failure.is_paused else f"failed with exit code {failure.exit_code}"
            tell(f"{job.label}: {how} {count}")
            tell("\n".join(wrap(f"{failure.reason} (see {job.log})", "  ")))
            if failure.is_paused:
                tell(f"stopped. {again}")
                break
            continue
        result = read_result(job.folder)
        results.append(result)
        tell(f"{job.label}: {_outcome(result, was_done=done[job.folder])} {count}")
    return results, failures


def _make_folder(folder: Path) -> None:
    from rlcli.errors import RunDirError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunDirError(
            f"cannot write to {folder}: {error.strerror}. Choose another --out."
        ) from None


def _outcome(result: Result, *, was_done: bool) -> str:
    scores = result.scores
    said = f"{scores[0]:.1%} -> {scores[-1]:.1%}" if scores else "no held-out score"
    said += f", {result.usage.wall_s:.0f} s"
    return f"{said}, finished before" if was_done else said


def _live(job: Job, count: str) -> Callable[[], None]:
    """Rewrites one line on a terminal now and then; silent where there is none."""
    from rlcli.run_dir.folder import RunDir

    if not sys.stderr.isatty():
        return lambda: None
    shown_s = [0.0]

    def watch() -> None:
        if time.monotonic() - shown_s[0] >= LIVE_EVERY_S:
            shown_s[0] = time.monotonic()
            status = RunDir(job.folder).status() or {}
            steps = f"step {status.get('step', 0)} of {status.get('num_steps') or '?'}"
            print(f"\r\x1b[K{job.label}: {steps} {count}", end="", file=sys.stderr, flush=True)

    return watch


def _tell(text: str) -> None:
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    print(text, flush=True)


def _tell_stderr(text: str) -> None:
    clear = "\r\x1b[K" if sys.stderr.isatty() else ""
    print(f"{clear}{text}", file=sys.stderr, flush=True)


def exit_code(
    jobs: Sequence[Job], stop: Stop, failures: Sequence[Failure], results: Sequence[Result]
) -> int:
    """That of `train`, where a signal or a pause ended it; else whether all runs finished."""
    import signal

    if stop.signal is not None:
        is_ctrl_c = stop.signal == signal.SIGINT
        return INTERRUPTED if is_ctrl_c else jobs[0].wanted.run.preempt_exit_code
    if any(failure.is_paused for failure in failures):
        return Paused.exit_code
    if failures and not results and all(failure.exit_code == 2 for failure in failures):
        return 2
    return 1 if failures else 0
