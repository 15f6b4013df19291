"""Resolve and check the responses and the reward of a trial before loading anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rlcli.config.resolved import Resolved
from rlcli.config.schema import Config
from rlcli.data.readers import Row
from rlcli.errors import ConfigError, DataError, MissingResourceError
from rlcli.rewards.combination import Combination, combine
from rlcli.rewards.rules import has_rule, rule_name
from rlcli.run_dir.folder import RunDir
from rlcli.setup.checks.rewards import resolve_reward
from rlcli.setup.checks.unused_settings import unused_notes
from rlcli.setup.resources import check_rewards, find_reward_model, read_data
from rlcli.system.hardware import usable_cores
from rlcli.tools.reward_test.responses import read_responses, run_of
from rlcli.tools.reward_test.rows import CODE, Case, own_answers

if TYPE_CHECKING:
    import torch

DATA, WORKERS = "data.train", "reward.workers"
ASKED_TWICE = 2
RESPONSES_PER_WORKER = 20
"""With fewer, starting another process takes longer than it saves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the command line says beside the settings. repeat: times in all; None: as it needs."""

    responses: str | None = None
    label: str | None = None
    limit: int | None = None
    repeat: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialPlan:
    """Everything known before a reward model is loaded or a judge asked.

    cases: every row's own answer, or the responses given. label: the name of their labels.
    """

    config: Config
    combination: Combination
    data: str
    cases: list[Case]
    label: str | None
    repeat: int
    reward_dir: Path | None
    device: torch.device | None
    notes: list[str]

    @property
    def is_given(self) -> bool:
        """Whether the responses come from a file."""
        return self.cases[0].kind == "given"


def plan_trial(resolved: Resolved, request: Request, env: Mapping[str, str]) -> TrialPlan:
    """The responses, with a reward that can score them; no policy model is looked for.

    Raises: UsageError with the cure.
    """
    if request.label and not request.responses:
        raise ConfigError(
            f"--label {request.label} names the field of human labels in responses.\n"
            "Add --responses FILE."
        )
    resolved = _reward_only(resolved)
    data, cases, notes = _cases(resolved, request)
    resolved = _with_workers(resolved, len(cases))
    config = resolved.config
    reward_dir = find_reward_model(resolved)
    rows = [case.row for case in cases]
    has_golds = request.responses is None
    reward_notes = check_rewards(resolved, [rows], reward_dir, env, tries_golds=has_golds)
    combination = combine(config.reward)
    is_judged = combination.uses("judge")
    device = None
    if reward_dir is not None:
        from rlcli.trainer.run_plan import choose_device

        device = choose_device(config)
    return TrialPlan(
        config=config,
        combination=combination,
        data=data,
        cases=cases,
        label=request.label,
        repeat=request.repeat or (ASKED_TWICE if is_judged else 1),
        reward_dir=reward_dir,
        device=device,
        notes=[*resolved.notes, *reward_notes, *notes],
    )


def _reward_only(resolved: Resolved) -> Resolved:
    """What a run does with the reward's settings; of the others nothing is said."""
    resolved = resolve_reward(resolved)
    own = frozenset(key for key in resolved.explicit if key.startswith("reward."))
    return resolved.with_notes(*unused_notes(replace(resolved, explicit=own)))


def _with_workers(resolved: Resolved, count: int) -> Resolved:
    """A process on every core for enough responses: nothing is sampled meanwhile."""
    if WORKERS in resolved.explicit:
        return resolved
    return resolved.override({WORKERS: max(1, min(usable_cores(), count // RESPONSES_PER_WORKER))})


def _cases(resolved: Resolved, request: Request) -> tuple[str, list[Case], list[str]]:
    """(what they are from, the responses, notes). Raises: DataError."""
    config = resolved.config
    if request.responses is None:
        rows = read_data(config, config.data.train)[: request.limit]
        cases = own_answers(rows, runs_code=_code_sources(config, rows))
        return ", ".join(config.data.train), cases, []
    config, read, notes = _data_of_responses(resolved, request.responses)
    given = read_responses(
        request.responses,
        read,
        fields=config.data.fields,
        label=request.label,
        limit=request.limit,
        data=config.data.train,
    )
    return request.responses, given.cases, [*notes, given.note]


def _code_sources(config: Config, rows: Sequence[Row]) -> set[str]:
    """Data sources whose rows are graded by running their tests."""
    reward = config.reward
    if reward.fn not in ("rules", CODE):
        return set()
    sources = {row.data_source for row in rows}
    return {
        source
        for source in sources
        if reward.fn == CODE or (has_rule(source) and rule_name(source) == CODE)
    }


def _data_of_responses(
    resolved: Resolved, responses: str
) -> tuple[Config, Callable[[], Sequence[Row]] | None, list[str]]:
    """(settings that name the data, what reads it, notes); nothing reads where there is none.

    Rollouts of a run answer that run's data, unless other data is named.
    """
    config = resolved.config
    if resolved.sources[DATA] != "default":
        return config, lambda: read_data(config, config.data.train), []
    run = run_of(responses)
    if run is None:
        return config, None, []
    own = RunDir(run).config()
    try:
        rows = read_data(own, own.data.train)
    except (DataError, MissingResourceError) as error:
        first = str(error).partition("\n")[0]
        return config, None, [f"the run's own data is not read: {first}"]
    return own, lambda: rows, []
