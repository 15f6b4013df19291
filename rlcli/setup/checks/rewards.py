"""Who gives the scores: a function, a judge, a reward model, or a mix of them."""

from __future__ import annotations

from rlcli.algos.registry import ESTIMATORS
from rlcli.config.resolved import Resolved
from rlcli.errors import ConfigError
from rlcli.setup.checks.conditional_settings import scores_by_function, scores_by_model

FN = "reward.fn"
MODEL = "reward.model"
COMPOSITE = "reward.composite"
WEIGHTS = "reward.weights"
JUDGE = "reward.judge.enabled"
RULE_FIRST = "reward.judge.rule_first"
NORMALIZE = "reward.normalize"
MIXED = frozenset({"rm_score", "rule_score", "judge"})
"""Parts of a composite; other names are parts of a user's function."""


def resolve_reward(resolved: Resolved) -> Resolved:
    """`resolved` with a mix of scores only where there are several to mix.

    Raises:
        ConfigError: settings of a judge nobody asked for, a mix of one score, a fixed scale without
            numbers, parts for an estimator that not every rollout has.
    """
    _check_judge(resolved)
    _check_scale(resolved)
    resolved = _settle_mix(resolved)
    _check_rule_first(resolved)
    return _note_panel(_settle_function(resolved))


def is_typed(resolved: Resolved, key: str) -> bool:
    """Whether the command line says it, rather than a file or a variable that lies around."""
    return key in resolved.explicit and resolved.sources[key].startswith(("flag ", "override "))


def _check_judge(resolved: Resolved) -> None:
    """Raises: ConfigError for a judge's settings on the command line and no word on the judge.

    A judge costs money: it is not turned on by guessing.
    """
    if resolved.config.reward.judge.enabled or JUDGE in resolved.explicit:
        return
    for key in sorted(resolved.explicit):
        if key.startswith("reward.judge.") and is_typed(resolved, key):
            raise ConfigError(
                f"{resolved.where(key)} is a setting of the judge, and the judge is not on.\n"
                "Add --use_api_reward to score with it, or --no_use_api_reward to leave it off."
            )


def _check_rule_first(resolved: Resolved) -> None:
    """Raises: ConfigError for a third score, for a mix, and for an estimator that reads parts."""
    reward = resolved.config.reward
    if not reward.judge.enabled or not reward.judge.rule_first:
        return
    wish = f"{resolved.where(RULE_FIRST)} asks the judge only where {FN} cannot decide"
    if reward.composite:
        raise ConfigError(
            f"{wish}, and {resolved.where(COMPOSITE)} mixes the scores of every rollout.\n"
            "Leave one of the two out."
        )
    if reward.model is not None:
        raise ConfigError(
            f"{wish}, and {resolved.where(MODEL)} is to score as well.\n"
            f"Leave one of the two out; {COMPOSITE}=true mixes a reward model with others."
        )
    if _reads_parts(resolved):
        raise ConfigError(
            f"{wish}, and {resolved.config.algorithm.advantage} needs the same parts of every "
            f"rollout.\nLeave {RULE_FIRST} out; {COMPOSITE}=true scores every rollout by both."
        )


def _check_scale(resolved: Resolved) -> None:
    """Raises: ConfigError for a fixed scale that is not given."""
    reward = resolved.config.reward
    if reward.model is None or reward.normalize != "fixed":
        return
    missing = [
        key for key in (f"{NORMALIZE}_mean", f"{NORMALIZE}_std") if resolved.value(key) is None
    ]
    if missing:
        raise ConfigError(
            f"{resolved.where(NORMALIZE)} needs {' and '.join(missing)}, not set.\n"
            "Set what `rlcli reward test` prints as mean and standard deviation, or use "
            f"{NORMALIZE}=running."
        )


def _settle_mix(resolved: Resolved) -> Resolved:
    reward = resolved.config.reward
    has_model = scores_by_model(resolved.config)
    names_mix = bool(reward.weights) and set(reward.weights) <= MIXED
    if reward.composite:
        return resolved if has_model else _without_mix(resolved, names_mix=names_mix)
    if not names_mix or _reads_parts(resolved):
        return resolved
    if has_model and COMPOSITE not in resolved.explicit:
        note = f"{resolved.sources[WEIGHTS]} turns {COMPOSITE} on."
        return resolved.override({COMPOSITE: True}, note=note, origin=resolved.sources[WEIGHTS])
    why = f"{COMPOSITE} is off" if has_model else "neither judge nor reward model: nothing to mix"
    return resolved.override({WEIGHTS: {}}, note=f"not used: {WEIGHTS} ({why}).").forget([WEIGHTS])


def _without_mix(resolved: Resolved, *, names_mix: bool) -> Resolved:
    """A file that lies around may say composite; a command line that does means a model.

    Raises: ConfigError for the latter.
    """
    if is_typed(resolved, COMPOSITE):
        raise ConfigError(
            f"{resolved.where(COMPOSITE)} mixes the rules' score with that of a judge or a reward "
            "model, and there is neither.\n"
            "Add --use_api_reward or --reward_model PATH, or leave reward.composite out."
        )
    keys = [COMPOSITE, WEIGHTS] if names_mix else [COMPOSITE]
    note = f"not used: {', '.join(keys)} (neither judge nor reward model: {FN} alone scores)."
    values = {COMPOSITE: False} | ({WEIGHTS: {}} if names_mix else {})
    return resolved.override(values, note=note).forget(keys)


def _settle_function(resolved: Resolved) -> Resolved:
    """A function that lies around gives way to a judge or a model that was asked for."""
    config = resolved.config
    if config.reward.composite or scores_by_function(config) or FN not in resolved.explicit:
        return resolved
    if is_typed(resolved, FN):  # both on one command line: refused with the rewards
        return resolved
    scorer = JUDGE if config.reward.judge.enabled else MODEL
    return resolved.with_notes(
        f"not used: {FN} ({scorer} gives the score; reward.composite=true mixes both)."
    ).forget([FN])


def _note_panel(resolved: Resolved) -> Resolved:
    """A word where scores of different judges are compared: within a prompt there is only one."""
    judge = resolved.config.reward.judge
    name = resolved.config.algorithm.advantage
    entry = ESTIMATORS.get(name)
    if not judge.enabled or not judge.panel or entry is None or entry.needs & {"group", "greedy"}:
        return resolved
    return resolved.with_notes(
        f"reward.judge.panel: {name} compares scores of different prompts, which different judges "
        "give, and one may be stricter than another."
    )


def _reads_parts(resolved: Resolved) -> bool:
    """Whether the estimator weighs the parts of the reward itself."""
    entry = ESTIMATORS.get(resolved.config.algorithm.advantage)
    return entry is not None and "parts" in entry.needs
