"""The Python API: `rlcli.train`, `rlcli.evaluate`, `rlcli.serve` and `rlcli.load_run`.

Settings have the names, checks and errors of the command line. Nothing here ends the process.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcli.config.request import RunRequest, request_of
from rlcli.config.resolved import Resolved
from rlcli.errors import ConfigError, LaunchError, RewardError, RlcliError
from rlcli.report.record import RunRecord
from rlcli.run_dir.folder import find_run
from rlcli.system.signals import BorrowedStop

if TYPE_CHECKING:
    from rlcli.tools.serving import PolicyServer

__all__ = ["Evaluation", "RlcliError", "RunRecord", "evaluate", "load_run", "serve", "train"]

RewardFunction = Callable[..., Any]
REWARDS = "reward_functions"
"""Folder beside the runs for functions that were defined in a program or a notebook."""


def train(
    config: Mapping[str, Any] | str | Path | Sequence[str | Path] | None = None,
    *,
    reward: RewardFunction | str | Mapping[str, Any] | None = None,
    **settings: Any,
) -> RunRecord:
    """Train a model and return the run, as `rlcli train` does.

    Ctrl-C stops after the step that is running, saves a checkpoint and raises KeyboardInterrupt;
    `resume="auto"` goes on from there. A second Ctrl-C stops at once.

    Args:
        config: A YAML file, several, or a mapping of settings, nested or with dotted keys.
        reward: A function `reward(solution_str, ground_truth, ...)`, or as `--reward`.
        settings: Options and settings of the command line: `algo="grpo"`, `model="..."`,
            `max_steps=10`, `rollout={"n": 8}`, `**{"train.lr": 1e-5}`. They win over `config`.

    Raises:
        RlcliError: As on the command line: UsageError before anything is loaded, Paused if the run
            can be resumed, TrainingError if training failed.
    """
    from rlcli.distributed.process_count import fit_to_env
    from rlcli.doctor.gpu import num_gpus_of_several
    from rlcli.run_dir.find_run import open_run_dir
    from rlcli.setup.resources import refuse_early
    from rlcli.tools.dry_run import prepare
    from rlcli.trainer.session import needs_process_group, run_session

    _refuse_ranks()
    # OpenMP threads that spin while they wait take the cores from everything else: measured 10x
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    request = request_of(config, settings)
    request, notes = _with_reward(request, reward)
    resolved = fit_to_env(request.resolve().with_notes(*notes), None, os.environ)
    refuse_early(resolved, os.environ, is_dry=False)
    run_dir, resume = open_run_dir(resolved, Path.cwd())
    run_dir.probe(resumes=resume != "no")
    if num_gpus_of_several(resolved, os.environ) is not None:
        return _train_in_child(request, resolved)
    plan, banner = prepare(resolved, os.environ, is_rank=False)
    if needs_process_group(plan.config):
        return _train_in_child(request, resolved)
    stop = BorrowedStop()
    outcome = run_session(plan, Path.cwd(), banner, stop=stop)
    if stop.signal is not None:
        signal.raise_signal(stop.signal)  # to the program's own handler, which is back
    return load_run(outcome.run_dir)


def load_run(run: str | Path) -> RunRecord:
    """A run by its directory, its name in outputs/, or "latest".

    Raises: RunDirError with the nearest name if there is no such run.
    """
    cwd = Path.cwd()
    return RunRecord(cwd / find_run(str(run), cwd))


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Scores of a model. rollouts: every response, with its prompt and reward.

    summary: "pass@1", "ci95", "reward_mean", "unscored", ..., as `rlcli eval --json` prints them.
    """

    summary: dict[str, Any]
    rollouts: list[dict[str, Any]]

    def __getitem__(self, name: str) -> Any:
        """A value of the summary, such as "pass@1"."""
        return self.summary[name]


def evaluate(
    target: RunRecord | str | Path,
    *,
    data: str | Path | Sequence[str | Path] | None = None,
    reward: RewardFunction | str | None = None,
    k: int | Sequence[int] = 1,
    n: int | None = None,
    temperature: float | None = None,
    step: int | None = None,
    limit: int | None = None,
    fields: Mapping[str, str] | None = None,
    max_response_tokens: int | None = None,
    max_prompt_tokens: int | None = None,
    seed: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    hub: str | None = None,
    trust_remote_code: bool | None = None,
) -> Evaluation:
    """Sample and score responses of a run or a model, as `rlcli eval` does.

    Args:
        target: A run, its directory or name, "latest", a model folder or a hub name.
        data: Files of prompts; None: the run's evaluation data.
        reward: A function, or as `--reward`; None: the run's.
        k: The k of pass@k, or several.
        n: Responses per prompt; None: the largest k.
        temperature: None: 0 for one response, else 1.
        step: Checkpoint of the run; None: the final model, or the newest.
        limit: Number of prompts; None: all.
        fields: Columns of the data, such as `{"prompt": "question"}`.

    Raises:
        RlcliError: As on the command line, and if no response could be scored.
    """
    from rlcli.terminal.i18n import translator
    from rlcli.terminal.logs import collected
    from rlcli.terminal.text import progress_line
    from rlcli.tools.evaluation.measuring import check_scored, run_evaluation, saved_rows, summarize
    from rlcli.tools.evaluation.planning import Request, plan_evaluation

    counts = {"k": k, "n": n, "limit": limit}
    ks = _counts(counts)
    with tempfile.TemporaryDirectory(prefix="rlcli-") as folder:
        fn, notes = _reward_name(reward, Path(folder))
        given = {
            "data.val": [data] if isinstance(data, str | Path) else data,
            "data.fields": fields,
            "data.max_response_tokens": max_response_tokens,
            "data.max_prompt_tokens": max_prompt_tokens,
            "reward.fn": fn,
            "run.seed": seed,
            "train.device": device,
            "model.dtype": dtype,
            "model.hub": hub,
            "model.trust_remote_code": trust_remote_code,
        }
        settings, lang = _checked(given)
        request = Request(
            target=_target(target),
            k=ks,
            n=n,
            temperature=temperature,
            step=step,
            limit=limit,
            settings=settings,
        )
        plan = plan_evaluation(request, Path.cwd(), os.environ)
        show = progress_line(translator(lang))
        with collected(prints=False) as logged:
            sampled = run_evaluation(
                plan,
                env=os.environ,
                progress=lambda phase, done, total: show(f"{phase}: {done} of {total}"),
            )
        show("")
        notes += [*plan.notes, *logged]
    check_scored(sampled)
    return Evaluation(
        summary={**summarize(plan, sampled), "notes": notes}, rollouts=saved_rows(sampled)
    )


@contextmanager
def serve(
    target: RunRecord | str | Path,
    *,
    step: int | None = None,
    temperature: float = 1.0,
    max_prompt_tokens: int | None = None,
    max_response_tokens: int | None = None,
    seed: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    hub: str | None = None,
    trust_remote_code: bool | None = None,
) -> Iterator[PolicyServer]:
    """A run's policy or a model behind OpenAI's API on 127.0.0.1, until the block ends.

    Calls that come together are sampled together, and recorded token by token.

    Args:
        target: A run, its directory or name, "latest", a model folder or a hub name.
        step: Checkpoint of the run; None: the final model, or the newest.
        temperature: Of all calls; 0 takes the likeliest tokens.
        max_prompt_tokens: Of the first messages of a conversation; None: the run's, or what fits.
        max_response_tokens: Of all that follows them; None: the run's, or half of what fits.

    Raises:
        RlcliError: As on the command line.
    """
    from rlcli.tools.evaluation.planning import Request
    from rlcli.tools.serving import PolicyServer

    given = {
        "data.max_prompt_tokens": max_prompt_tokens,
        "data.max_response_tokens": max_response_tokens,
        "run.seed": seed,
        "train.device": device,
        "model.dtype": dtype,
        "model.hub": hub,
        "model.trust_remote_code": trust_remote_code,
    }
    settings, _ = _checked(given)
    server = PolicyServer(
        Request(target=_target(target), temperature=temperature, step=step, settings=settings)
    )
    try:
        yield server
    finally:
        server.close()


def _target(target: RunRecord | str | Path) -> str:
    """A run, a model folder or a name as the command line has it."""
    return str(target.path if isinstance(target, RunRecord) else target)


def _checked(given: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """(settings that are not None, with their types checked; the language). Raises: ConfigError."""
    named = {key: value for key, value in given.items() if value is not None}
    checked = request_of(None, named).resolve()
    return {key: checked.value(key) for key in named}, checked.config.run.lang


def _counts(given: Mapping[str, Any]) -> tuple[int, ...]:
    """k, ascending. Raises: ConfigError if one of the counts is not a whole number from 1."""
    counts = {name: [value] if isinstance(value, int) else value for name, value in given.items()}
    for name, values in counts.items():
        for value in () if values is None else values:
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name}={given[name]!r}: expected whole numbers from 1.")
    return tuple(sorted({*counts["k"]}))


def _refuse_ranks() -> None:
    """Raises: LaunchError in a process that a launcher started as one of several."""
    from rlcli.distributed.rank_env import read_rank

    rank = read_rank(os.environ)
    if rank is not None and rank.world_size > 1:
        raise LaunchError(
            f"this program is rank {rank.rank} of {rank.world_size} that a launcher started, and "
            "rlcli.train starts its own processes.\nStart the program once, with "
            "train.n_gpus=N, or have the launcher start rlcli train."
        )


def _with_reward(
    request: RunRequest, reward: RewardFunction | str | Mapping[str, Any] | None
) -> tuple[RunRequest, list[str]]:
    """(the request with this reward, notes). Raises: RewardError, RunDirError."""
    if reward is None:
        return request, []
    if isinstance(reward, Mapping):
        more = request_of(None, {"reward": reward})
        return replace(request, overrides=[*request.overrides, *more.overrides]), []
    from rlcli.run_dir.find_run import find_run_dir

    cwd = Path.cwd()
    run = cwd
    if not isinstance(reward, str):
        run = cwd / find_run_dir(request.resolve(reward="exact").config, cwd)[0]
    fn, notes = _reward_name(reward, run.parent / REWARDS)
    return replace(request, flags={**request.flags, "reward": fn}), notes


def _reward_name(reward: RewardFunction | str | None, folder: Path) -> tuple[Any, list[str]]:
    """(`reward.fn`, notes). Raises: RewardError."""
    if reward is None or isinstance(reward, str):
        return reward, []
    from rlcli.rewards.passed import name_function

    return name_function(reward, folder)


def _train_in_child(request: RunRequest, resolved: Resolved) -> RunRecord:
    """Train in other processes: several, or one with a process group, which outlives a run.

    Raises: RewardError if the reward is in this process.
    """
    from rlcli.launcher.child import train_in_child
    from rlcli.rewards.in_process import is_here

    if is_here(resolved.config.reward.fn):
        raise RewardError(
            f"this run trains in processes of its own, and {resolved.where('reward.fn')} cannot be "
            "sent there.\nInstall cloudpickle, or put the function into a file: "
            'reward="FILE.py:FUNCTION".'
        )
    return load_run(train_in_child(request.words()))
