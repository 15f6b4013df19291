"""The scorer of `reward.fn`, and what can be said of it before a model is loaded."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcli.errors import RewardError
from rlcli.rewards.base import Scorer
from rlcli.rewards.loading import is_rule
from rlcli.rewards.pool import ScorerPool, check_function
from rlcli.rewards.rules import gold_problem, rule_name

if TYPE_CHECKING:
    from rlcli.config.schema import RewardConfig


def check_reward(config: RewardConfig, data_sources: Collection[str]) -> None:
    """Nothing, when `reward.fn` can score rows of these data sources.

    Raises:
        RewardError: a data source without a rule; a function that is not there, does not load or
            takes other arguments (with file and line); reward.weights for a rule without parts.
    """
    if not is_rule(config.fn):
        check_function(config.fn)
        return
    if config.weights:
        raise RewardError(
            f"reward.weights names {', '.join(config.weights)}, but reward.fn={config.fn} "
            "returns one number without parts.\n"
            "Remove the weights, or set reward.fn to a function that returns a dict."
        )
    if config.fn == "rules":
        for data_source in sorted(data_sources):
            rule_name(data_source)


def gold_problems(config: RewardConfig, rows: Iterable[tuple[str, str, Any]]) -> list[str]:
    """One message per row whose ground truth a built-in rule cannot grade against.

    rows: (id, data_source, ground_truth). A user's function is its own judge of that.
    """
    if not is_rule(config.fn):
        return []
    problems: list[str] = []
    for row_id, data_source, ground_truth in rows:
        name = rule_name(data_source) if config.fn == "rules" else config.fn
        problem = gold_problem(name, ground_truth)
        if problem:
            problems.append(f"{row_id}: {problem} (rule {name}).")
    return problems


def build_scorer(config: RewardConfig, *, log: Path | None = None) -> Scorer:
    """A scorer whose processes are being started. `check_reward` says whether they will.

    log: file for what a user's function prints; none: nowhere.
    """
    return ScorerPool(
        config.fn,
        workers=config.workers,
        timeout_s=config.timeout_s,
        weights=config.weights,
        log=log,
    )
