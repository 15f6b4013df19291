"""Whether the estimator, the loss and their settings make an algorithm that can run."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from rlcli.algos.registry import ESTIMATORS, LOSSES, Entry
from rlcli.config.algorithm_selection import FUNCTION_PATH
from rlcli.config.resolved import Resolved
from rlcli.errors import ConfigError

GROUPLESS = "reinforce_plus_plus"
"""The algorithm to go to when one response per prompt is wanted."""
NORM = "seq_mean_token_sum_norm"
OLD_LOGPROBS = "algorithm.use_rollout_logprobs"


def check_algorithm(resolved: Resolved) -> Resolved:
    """`resolved` with an aggregation its loss can use.

    Raises:
        ConfigError: unknown names, unmet needs, contradictions.
    """
    estimator = find_entry(resolved, "advantage", ESTIMATORS)
    loss = find_entry(resolved, "loss", LOSSES)
    _check_needs(resolved, estimator)
    _check_pair(resolved, estimator, loss)
    _check_turn_credit(resolved, estimator, loss)
    _check_settings(resolved, estimator, loss)
    _check_correction(resolved)
    return _settle_aggregation(resolved, loss)


def find_entry(resolved: Resolved, kind: str, table: Mapping[str, Entry]) -> Entry | None:
    """The table's row for `algorithm.<kind>`; None for a user's own `package.module:function`.

    Raises:
        ConfigError: neither a name of the table nor a function path.
    """
    key = f"algorithm.{kind}"
    name = str(resolved.value(key))
    if name in table:
        return table[name]
    if FUNCTION_PATH.fullmatch(name):
        return None
    close = difflib.get_close_matches(name.lower(), table, n=2)
    names = f"Nearest: {', '.join(close)}" if close else f"There are {', '.join(table)}"
    raise ConfigError(
        f"{resolved.where(key)} is not a known {kind}. {names}; or package.module:function."
    )


def _check_pair(resolved: Resolved, estimator: Entry | None, loss: Entry | None) -> None:
    """Raises: ConfigError for a loss that cannot use what the estimator gives."""
    if estimator and loss and estimator.is_per_token and loss.is_per_sequence:
        raise ConfigError(
            f"{resolved.where('algorithm.loss')} weighs a whole rollout by one advantage, and "
            f"{resolved.where('algorithm.advantage')} gives one per token.\n"
            "Use algorithm.loss=clip, or an estimator such as grpo or rloo."
        )


def _check_turn_credit(resolved: Resolved, estimator: Entry | None, loss: Entry | None) -> None:
    """Raises: ConfigError where turns cannot be credited with their own rewards."""
    config = resolved.config
    if not config.env.is_on or config.env.credit == "outcome":
        return
    credit = resolved.where("env.credit")
    if config.env.tools is not None:
        raise ConfigError(
            f"{credit} needs rewards of single turns, and tools give none.\n"
            "Leave it out, or use --env with a class whose step() returns rewards."
        )
    if estimator is not None and not estimator.credits_turns:
        names = ", ".join(name for name, entry in ESTIMATORS.items() if entry.credits_turns)
        raise ConfigError(
            f"{credit} gives every turn an advantage of its own, and "
            f"{resolved.where('algorithm.advantage')} compares whole episodes.\n"
            f"Use env.credit=outcome, or one of {names}."
        )
    if loss is not None and loss.is_per_sequence:
        raise ConfigError(
            f"{credit} gives every turn an advantage of its own, and "
            f"{resolved.where('algorithm.loss')} weighs a whole rollout by one.\n"
            "Use env.credit=outcome, or algorithm.loss=clip."
        )
    if config.algorithm.dynamic_sampling:
        raise ConfigError(
            f"{resolved.where('algorithm.dynamic_sampling')} drops groups whose episodes have "
            f"equal rewards, and with {credit} they still teach.\n"
            "Turn dynamic_sampling off, or use env.credit=outcome."
        )


def _check_needs(resolved: Resolved, estimator: Entry | None) -> None:
    config = resolved.config
    name = config.algorithm.advantage
    if estimator is not None and "group" in estimator.needs and config.rollout.n < 2:
        raise ConfigError(
            f"{name} needs rollout.n >= 2, got {config.rollout.n} "
            f"(from {resolved.sources['rollout.n']}). Raise it, or use --algo {GROUPLESS}."
        )
    if config.algorithm.dynamic_sampling and config.rollout.n < 2:
        raise ConfigError(
            f"{resolved.where('algorithm.dynamic_sampling')} drops groups of equal scores and "
            f"needs rollout.n >= 2, got {config.rollout.n} "
            f"(from {resolved.sources['rollout.n']}). Raise it, or turn dynamic_sampling off."
        )
    if estimator is not None and "parts" in estimator.needs and not config.reward.weights:
        raise ConfigError(
            f"{name} weighs the parts of the reward, and reward.weights names none. "
            "Set e.g. reward.weights={accuracy: 1.0, format: 0.2}."
        )
    _check_parts_only(resolved, estimator)
    _check_greedy(resolved, estimator)


def _check_greedy(resolved: Resolved, estimator: Entry | None) -> None:
    """Raises: ConfigError for a penalty that the greedy baseline would not pay."""
    if estimator is None or "greedy" not in estimator.needs:
        return
    if resolved.config.algorithm.overlong_penalty:
        raise ConfigError(
            f"{resolved.where('algorithm.overlong_penalty')} would lower the sampled score and "
            "not the greedy baseline it is compared with.\n"
            "Turn it off, or put the length into your reward function."
        )


def _check_parts_only(resolved: Resolved, estimator: Entry | None) -> None:
    """Raises: ConfigError for a term in the reward that an estimator of parts never sees."""
    if estimator is None or "parts" not in estimator.needs:
        return
    for key in ("algorithm.kl_in_reward", "algorithm.overlong_penalty"):
        if resolved.value(key):
            raise ConfigError(
                f"{resolved.where(key)} changes the whole score, and "
                f"{resolved.config.algorithm.advantage} reads the reward's parts alone.\n"
                "Turn it off; algorithm.kl_loss=true puts a KL term into the loss instead."
            )


def _check_settings(resolved: Resolved, estimator: Entry | None, loss: Entry | None) -> None:
    algorithm = resolved.config.algorithm
    if loss is not None and "dro_beta" in loss.settings and algorithm.dro_beta is None:
        raise ConfigError(
            f"{resolved.where('algorithm.loss')} needs algorithm.dro_beta > 0, which is not set. "
            "Set it, e.g. algorithm.dro_beta=0.1."
        )
    if _contradicts(resolved, "algorithm.scale_by_std", estimator):
        readers = [name for name, entry in ESTIMATORS.items() if "scale_by_std" in entry.settings]
        raise ConfigError(
            f"{resolved.where('algorithm.scale_by_std')} is a setting of {', '.join(readers)}; "
            f"{algorithm.advantage} has no standard deviation to divide by.\n"
            "Remove it, or use --algo grpo."
        )
    if (
        "algorithm.loss_scale_factor" in resolved.explicit
        and algorithm.loss_scale_factor is not None
        and algorithm.aggregation != NORM
    ):
        raise ConfigError(
            f"{resolved.where('algorithm.loss_scale_factor')} divides under aggregation {NORM} "
            f"only; this run has {resolved.where('algorithm.aggregation')}.\n"
            f"Add algorithm.aggregation={NORM}, or remove the factor."
        )


def _contradicts(resolved: Resolved, key: str, entry: Entry | None) -> bool:
    is_read = entry is None or key.removeprefix("algorithm.") in entry.settings
    return key in resolved.explicit and not is_read


def _check_correction(resolved: Resolved) -> None:
    algorithm = resolved.config.algorithm
    for key in [key for key in ("rollout.top_p", "rollout.top_k") if cuts(resolved, key)]:
        if algorithm.corrects_sampler:
            raise ConfigError(
                f"{resolved.where('algorithm.correction')} weighs by the sampler's full "
                f"distribution, and {resolved.where(key)} samples from a part of it.\n"
                f"Use algorithm.correction=off, or leave {key} out."
            )
    switches = [("algorithm.correction", algorithm.corrects_sampler)]
    switches.append(("algorithm.rejection", algorithm.rejection != "off"))
    for key, is_on in switches:
        if algorithm.use_rollout_logprobs and is_on:
            raise ConfigError(
                f"{resolved.where(OLD_LOGPROBS)} takes the sampler's log-probs as old ones: "
                f"{resolved.where(key)} would compare them with themselves.\n"
                f"Turn use_rollout_logprobs off, or use {key}=off."
            )
    floor, cap = algorithm.correction_floor, algorithm.correction_cap
    if floor is not None and floor >= cap:
        _refuse_order(resolved, "algorithm.correction_floor", "algorithm.correction_cap")
    if algorithm.rejection == "seq_k1" and algorithm.rejection_low >= algorithm.rejection_high:
        _refuse_order(resolved, "algorithm.rejection_low", "algorithm.rejection_high")
    if algorithm.loss == "clip_cov" and algorithm.clip_cov_low >= algorithm.clip_cov_high:
        _refuse_order(resolved, "algorithm.clip_cov_low", "algorithm.clip_cov_high")


def _refuse_order(resolved: Resolved, low: str, high: str) -> None:
    raise ConfigError(
        f"{resolved.where(low)} must be below {resolved.where(high)}. Lower it, or raise the other."
    )


def cuts(resolved: Resolved, key: str) -> bool:
    """Whether top_p or top_k leaves tokens out."""
    rollout = resolved.config.rollout
    return rollout.top_p < 1.0 if key == "rollout.top_p" else rollout.top_k > 0


def _settle_aggregation(resolved: Resolved, loss: Entry | None) -> Resolved:
    algorithm = resolved.config.algorithm
    key = "algorithm.aggregation"
    if loss is None or loss.aggregations is None or algorithm.aggregation in loss.aggregations:
        return resolved
    wanted = loss.aggregations[0]
    reason = f"the {algorithm.loss} loss is one number per sequence"
    if key in resolved.explicit:
        raise ConfigError(
            f"{resolved.where(key)}, but {reason}: it needs {' or '.join(loss.aggregations)}.\n"
            f"Use {key}={wanted}, or another algorithm.loss."
        )
    note = f"{key} is {wanted}: {reason}."
    return resolved.override({key: wanted}, note=note, origin=f"the {algorithm.loss} loss")
