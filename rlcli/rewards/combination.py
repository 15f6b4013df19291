"""Which scorers a run has, and how their scores become one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rlcli.errors import RewardError

if TYPE_CHECKING:
    from rlcli.config.rewards import RewardConfig

Source = Literal["fn", "model", "judge", "env"]
Scale = Literal["off", "running", "fixed"]
PARTS = ("rm_score", "judge", "rule_score", "env")
"""Parts of a mix. rm_score: the reward model, or the judge if there is none. env: environment."""
PART_OF: Mapping[Source, str] = {
    "fn": "rule_score",
    "model": "rm_score",
    "judge": "judge",
    "env": "env",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """What scores a run. `sources`: one, or several by the name of their part.

    weights: of a composite's parts; of a lone or first function's own parts; else none.
    is_rule_first: the judge is asked about what the function cannot decide. scale: what is done
    to the reward model's score before it counts.
    """

    sources: Mapping[str, Source]
    weights: Mapping[str, float]
    is_composite: bool = False
    is_rule_first: bool = False
    scale: Scale = "off"

    def uses(self, source: Source) -> bool:
        """Whether the function, the model, the judge or the environment scores."""
        return source in self.sources.values()


def combine(config: RewardConfig, *, explicit: frozenset[str] = frozenset()) -> Combination:
    """What the reward section means: judge, model, function, or several of them.

    explicit: dotted keys the user set; what contradicts them is refused instead of left out.

    Raises:
        RewardError: two rewards without weights, weights of parts that are not there, a reward
            that is set and would never be used.
    """
    if config.judge.enabled and config.judge.rule_first:  # preflight lets no third score in
        both: dict[str, Source] = {PART_OF["fn"]: "fn", PART_OF["judge"]: "judge"}
        return Combination(sources=both, weights=config.weights, is_rule_first=True)
    configured: list[Source] = []
    if config.judge.enabled:
        configured.append("judge")
    if config.model:
        configured.append("model")
    if config.composite:
        return _composite(config, configured, explicit)
    if len(configured) == 2:
        raise RewardError(
            f"a judge and reward.model={config.model} are both to score, and nothing says how.\n"
            "Add reward.composite=true and reward.weights={judge: 0.5, rm_score: 0.5}, "
            "or leave one of them out."
        )
    if not configured:
        return Combination(sources={"fn": "fn"}, weights=config.weights)
    (only,) = configured
    if "reward.fn" in explicit:
        raise RewardError(
            f"reward.fn={config.fn} and {_shown(only, config)} are both to score, and nothing says "
            "how.\nAdd reward.composite=true and reward.weights={rm_score: 0.7, rule_score: 0.3}, "
            "or leave one of them out." + _or_rule_first(only)
        )
    if config.weights:
        raise RewardError(
            f"reward.weights names {', '.join(config.weights)}, but reward.composite is off: only "
            f"{_shown(only, config)} scores.\nAdd reward.composite=true, or remove the weights."
        )
    return Combination(sources={only: only}, weights={}, scale=_scale(config, {only: only}))


def mixes_environment(config: RewardConfig) -> bool:
    """Whether an environment's reward is a part of a mix."""
    return config.composite and PART_OF["env"] in config.weights


def _or_rule_first(only: Source) -> str:
    hint = "\nreward.judge.rule_first=true asks the judge only where reward.fn cannot decide."
    return hint if only == "judge" else ""


def _scale(config: RewardConfig, sources: Mapping[str, Source]) -> Scale:
    if "model" not in sources.values():
        return "off"
    if config.normalize == "auto":
        return "running" if config.composite else "off"
    return config.normalize


def _composite(
    config: RewardConfig, configured: Sequence[Source], explicit: frozenset[str]
) -> Combination:
    if not config.weights:
        first = "rm_score" if configured else "rule_score"
        raise RewardError(
            "reward.composite=true mixes parts by reward.weights, which names none.\n"
            f"Set e.g. reward.weights={{{first}: 0.7, rule_score: 0.3}}, or "
            "reward.composite=false."
        )
    sources: dict[str, Source] = {
        name: _source(name, config, configured) for name in config.weights
    }
    if sources.get("rm_score") == "judge" and "judge" in sources:
        raise RewardError(
            "reward.weights names rm_score and judge, which are the same here: without a reward "
            "model the judge gives rm_score.\nKeep one of the two, or give --reward_model PATH."
        )
    wanted: list[Source] = [*configured]
    if "reward.fn" in explicit:
        wanted.append("fn")
    for source in wanted:
        if source not in sources.values():
            name = PART_OF[source]
            raise RewardError(
                f"{_shown(source, config)} is set, but reward.weights gives it no weight: "
                f"{name} is missing.\nAdd {name} to reward.weights, or leave the setting out."
            )
    if not any(config.weights.values()):
        raise RewardError(
            "reward.weights are all 0: every rollout would have the same reward.\n"
            "Give at least one part a weight, e.g. reward.weights={rm_score: 0.7, rule_score: 0.3}."
        )
    return Combination(
        sources=sources,
        weights=dict(config.weights),
        is_composite=True,
        scale=_scale(config, sources),
    )


def _source(name: str, config: RewardConfig, configured: Sequence[Source]) -> Source:
    """What gives a part. Raises: RewardError when nothing does."""
    if name == "rule_score":
        return "fn"
    if name == "env":
        return "env"
    if name == "judge" and "judge" in configured:
        return "judge"
    if name == "rm_score" and configured:
        return "model" if "model" in configured else "judge"
    if name in PARTS:
        what = "a judge" if name == "judge" else "a reward model or a judge"
        cure = "--use_api_reward" if name == "judge" else "--reward_model PATH or --use_api_reward"
        raise RewardError(
            f"reward.weights gives {name} a weight of {config.weights[name]:g}, but {what} is not "
            f"configured.\nGive {cure}; or remove {name} from reward.weights; or set "
            "reward.composite=false."
        )
    close = difflib.get_close_matches(name, PARTS, n=1)
    hint = f" (nearest: {close[0]})" if close else ""
    raise RewardError(
        f"reward.weights names {name}{hint}, which is no part of a composite.\n"
        "There are rm_score (reward model or judge), judge, rule_score (reward.fn), and env (the "
        "environment of episodes)."
    )


def _shown(source: Source, config: RewardConfig) -> str:
    if source == "judge":
        return "the judge (reward.judge.enabled=true)"
    return f"reward.fn={config.fn}" if source == "fn" else f"reward.model={config.model}"
