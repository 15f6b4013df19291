"""The scorer of a run's reward section, and what can be said of it before a model is loaded."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from rlcli.errors import RewardError
from rlcli.rewards.base import Peers, Scorer, single_rank
from rlcli.rewards.batched_scorer import BatchScorer
from rlcli.rewards.combination import PART_OF, Combination, Source, combine
from rlcli.rewards.composite_scorer import CompositeScorer
from rlcli.rewards.function_check import Row, check_function
from rlcli.rewards.loading import is_rule
from rlcli.rewards.model_files import check_model_files
from rlcli.rewards.normalize import FixedScale, Normalizer, RunningScale
from rlcli.rewards.process_pool import ScorerPool
from rlcli.rewards.remote import RemoteModel, check_url, is_url
from rlcli.rewards.rule_first_scorer import RuleFirstScorer
from rlcli.rewards.rules import RUNS_CODE, has_rule, reference_problem, rule_name
from rlcli.rewards.sandbox import check_sandbox

if TYPE_CHECKING:
    import torch

    from rlcli.config.rewards import RewardConfig


def check_reward(
    config: RewardConfig,
    data_sources: Collection[str],
    *,
    explicit: frozenset[str] = frozenset(),
    env: Mapping[str, str] | None = None,
    lang: str = "en",
    model_dir: Path | None = None,
    rows: Sequence[Row] = (),
) -> list[str]:
    """Notes, when the reward section can score rows of these data sources. Touches no network.

    explicit: dotted keys the user set. env: where a judge's key is; none: the process's own.
    lang: of a judge's template. model_dir: the folder of reward.model, when that is no URL.
    rows: some of the data; a user's function is tried on the first.

    Raises:
        RewardError: rewards that contradict each other; a data source without a rule; a function
            that is not there, does not load or takes other arguments (with file and line); weights
            for a rule without parts; a folder without a reward model; a judge that cannot be asked.
    """
    combination = combine(config, explicit=explicit)
    notes: list[str] = []
    if combination.uses("fn"):
        notes += _check_fn(config, combination, data_sources, rows)
    if combination.uses("model"):
        if is_url(config.model or ""):
            check_url(config.model or "")
        elif model_dir is not None:
            notes += check_model_files(model_dir)
    if combination.uses("judge"):
        from rlcli.rewards.judge import check_judge

        notes += check_judge(config.judge, os.environ if env is None else env, lang=lang)
    return notes + _scale_notes(config, combination)


def probe_reward(
    config: RewardConfig, *, env: Mapping[str, str] | None = None, lang: str = "en"
) -> list[str]:
    """Notes, when the judge and the reward model's server answered one call each.

    Raises:
        RewardError: one of them does not.
    """
    combination = combine(config)
    if combination.uses("model") and is_url(config.model or ""):
        RemoteModel(config.model or "", timeout_s=config.timeout_s).probe()
    if not combination.uses("judge"):
        return []
    from rlcli.rewards.judge import probe_judge

    return probe_judge(config.judge, os.environ if env is None else env, lang=lang)


def needs_model(config: RewardConfig) -> bool:
    """Whether a reward model must be found on this machine or the hub."""
    return combine(config).uses("model") and not is_url(config.model or "")


def reference_problems(config: RewardConfig, rows: Iterable[Row]) -> list[str]:
    """One message per row that its built-in rule cannot grade; [] for a user's function."""
    combination = combine(config)
    if not combination.uses("fn") or not is_rule(config.fn):
        return []
    problems: list[str] = []
    for row in rows:
        if combination.is_rule_first and config.fn == "rules" and not has_rule(row.data_source):
            continue
        name = rule_name(row.data_source) if config.fn == "rules" else config.fn
        problem = reference_problem(name, row.ground_truth, row.extra_info)
        if problem:
            problems.append(f"{row.id}: {problem} (rule {name}).")
    return problems


def rules_in_use(config: RewardConfig, data_sources: Collection[str]) -> set[str]:
    """The built-in rules that score rows of these data sources."""
    if not combine(config).uses("fn") or not is_rule(config.fn):
        return set()
    if config.fn != "rules":
        return {config.fn}
    return {rule_name(source) for source in data_sources if has_rule(source)}


def build_scorer(
    config: RewardConfig,
    *,
    log: Path | None = None,
    run_dir: Path | None = None,
    env: Mapping[str, str] | None = None,
    lang: str = "en",
    model_dir: Path | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    peers: Peers | None = None,
    environment: Scorer | None = None,
) -> Scorer:
    """Start a scorer. Call `check_reward` before.

    peers: in a run of several ranks, of which each builds a scorer. All ranks use rank 0's judge
    and divide the reward.workers processes of a machine.

    log: file for what a user's function prints; none: nowhere. run_dir: where a judge, then a
    process of its own, keeps verdicts and what it cost; none: no run is on. model_dir, device:
    of a local reward model. dtype: of its weights; none: bfloat16 on CUDA, float32 elsewhere.
    environment: gives the environment's part of a mix.

    Raises:
        RewardError: the reward model does not load.
    """
    combination = combine(config)

    def build(source: Source) -> Scorer:
        if source == "env":
            assert environment is not None  # checked with the environment
            return environment
        if source == "model":
            return _model_scorer(config, model_dir, device, dtype)
        if source == "judge":
            return _judge(config, env=env, lang=lang, run_dir=run_dir, log=log, peers=peers)
        return ScorerPool(
            config.fn,
            workers=max(1, config.workers // (peers.local_size if peers else 1)),
            timeout_s=config.timeout_s,
            weights={} if combination.is_composite else combination.weights,
            log=log,
            allows_unsafe=config.unsafe_code_execution,
        )

    scorers: dict[str, Scorer] = {}
    # What can fail comes first, and takes what already runs down with it.
    order: list[Source] = ["model", "judge", "fn", "env"]
    with ExitStack() as running:
        for name, source in sorted(combination.sources.items(), key=lambda x: order.index(x[1])):
            scorers[name] = build(source)
            running.callback(scorers[name].close)
        running.pop_all()
    gather = peers.gather if peers else single_rank
    if combination.is_rule_first:
        return RuleFirstScorer(scorers[PART_OF["fn"]], scorers[PART_OF["judge"]], gather=gather)
    scale = _normalizer(config, combination)
    if combination.is_composite:
        return CompositeScorer(scorers, combination.weights, scale=scale, gather=gather)
    (only,) = scorers.values()
    if scale is None:
        return only
    part = PART_OF["model"]
    return CompositeScorer({part: only}, {part: 1.0}, scale=scale, gather=gather)


def _judge(
    config: RewardConfig,
    *,
    env: Mapping[str, str] | None,
    lang: str,
    run_dir: Path | None,
    log: Path | None,
    peers: Peers | None,
) -> Scorer:
    """The judge: in its own process during a run, and shared by all ranks."""
    from rlcli.rewards.judge import JudgeProcess, JudgeScorer, RemoteJudge, SharedJudge

    keys = os.environ if env is None else env
    if run_dir is None:
        return JudgeScorer(config.judge, env=keys, lang=lang)
    if peers is None:
        return JudgeProcess(config.judge, env=keys, lang=lang, run_dir=run_dir, log=log)
    if not peers.is_first:
        return RemoteJudge(peers.first(None), peers.prompts)
    judge = SharedJudge(config.judge, env=keys, lang=lang, run_dir=run_dir, log=log)
    peers.first(judge.serve(peers.host, peers.prompts))
    return judge


def _normalizer(config: RewardConfig, combination: Combination) -> Normalizer | None:
    if combination.scale == "running":
        return RunningScale(config.model or "")
    if combination.scale == "fixed":
        assert config.normalize_mean is not None
        assert config.normalize_std is not None
        return FixedScale(config.normalize_mean, config.normalize_std)
    return None


def _model_scorer(
    config: RewardConfig,
    model_dir: Path | None,
    device: torch.device | None,
    dtype: torch.dtype | None,
) -> Scorer:
    if is_url(config.model or ""):
        remote = RemoteModel(config.model or "", timeout_s=config.timeout_s)
        return BatchScorer(remote, threads=remote.num_threads)
    from rlcli.rewards.reward_model import load_reward_model

    assert model_dir is not None
    assert device is not None
    return BatchScorer(load_reward_model(model_dir, device=device, dtype=dtype))


def _check_fn(
    config: RewardConfig,
    combination: Combination,
    data_sources: Collection[str],
    rows: Sequence[Row],
) -> list[str]:
    if not is_rule(config.fn):
        return check_function(
            config.fn,
            rows,
            timeout_s=config.timeout_s,
            weights={} if combination.is_composite else combination.weights,
            may_abstain=combination.is_rule_first,
        )
    if combination.weights and not combination.is_composite:
        raise RewardError(
            f"reward.weights names {', '.join(config.weights)}, but reward.fn={config.fn} "
            "returns one number without parts.\n"
            "Remove the weights, or set reward.fn to a function that returns a dict."
        )
    if config.fn != "rules":
        return _code_notes(config, {config.fn})
    if combination.is_rule_first:
        left = ", ".join(repr(name) for name in sorted(data_sources) if not has_rule(name))
        notes = [f"no built-in rule grades data_source {left}: the judge scores."] if left else []
        return notes + _code_notes(config, {rule_name(x) for x in data_sources if has_rule(x)})
    return _code_notes(config, {rule_name(name) for name in sorted(data_sources)})


def _code_notes(config: RewardConfig, rules: Collection[str]) -> list[str]:
    """How the model's code is run where a rule runs any. Raises: RewardError when it cannot be."""
    is_unsafe = config.unsafe_code_execution
    if any(rule in RUNS_CODE for rule in rules):
        return check_sandbox(allows_unsafe=is_unsafe)
    unused = "not used: reward.unsafe_code_execution (no rule here runs code)."
    return [unused] if is_unsafe and config.fn == "rules" else []


def _scale_notes(config: RewardConfig, combination: Combination) -> list[str]:
    """On which scale a reward model's score counts."""
    if combination.scale == "running":
        return [
            "the reward model's score counts in standard deviations from the mean of its scores so "
            f"far (reward.normalize={config.normalize}); reward/rm_score is as the model gives it."
        ]
    if combination.scale == "fixed":
        return [
            f"the reward model's score counts as (score - {config.normalize_mean:g}) / "
            f"{config.normalize_std:g} (reward.normalize=fixed); reward/rm_score is as the model "
            "gives it."
        ]
    if not combination.is_composite or not combination.uses("model"):
        return []
    return [
        "reward.weights mix raw scores (reward.normalize=off): rm_score is the reward model's "
        "output as it is, on no fixed scale. Compare reward/* of the first steps before trusting "
        "the weights."
    ]
