"""Settings the user gave that this run does not read, with the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rlcli.algos.table import ESTIMATORS, LOSSES, Entry
from rlcli.config.resolved import Resolved
from rlcli.config.schema import Config


@dataclass(frozen=True, slots=True)
class _Switch:
    """Settings read only while `is_on`; otherwise `reason` says why not."""

    keys: tuple[str, ...]
    is_on: Callable[[Config], bool]
    reason: str


def _algorithm(*names: str) -> tuple[str, ...]:
    return tuple(f"algorithm.{name}" for name in names)


SWITCHES = (
    _Switch(
        _algorithm("kl_coef", "kl_reward_type", "kl_controller", "kl_target", "kl_horizon"),
        lambda config: config.algorithm.kl_in_reward,
        "algorithm.kl_in_reward is off",
    ),
    _Switch(
        _algorithm("kl_target", "kl_horizon"),
        lambda config: config.algorithm.kl_controller == "adaptive",
        "algorithm.kl_controller is fixed",
    ),
    _Switch(
        _algorithm("kl_loss_coef", "kl_loss_type"),
        lambda config: config.algorithm.kl_loss,
        "algorithm.kl_loss is off",
    ),
    _Switch(
        _algorithm("max_refills"),
        lambda config: config.algorithm.dynamic_sampling,
        "algorithm.dynamic_sampling is off",
    ),
    _Switch(
        _algorithm("overlong_buffer", "overlong_factor"),
        lambda config: config.algorithm.overlong_penalty,
        "algorithm.overlong_penalty is off",
    ),
    _Switch(
        _algorithm("correction_cap", "correction_floor"),
        lambda config: config.algorithm.correction in ("token", "sequence"),
        "the native sampler is the trainer's own model, so auto corrects nothing",
    ),
    _Switch(
        _algorithm("rejection_low", "rejection_high"),
        lambda config: config.algorithm.rejection != "off",
        "algorithm.rejection is off",
    ),
    _Switch(
        _algorithm("rejection_low"),
        lambda config: config.algorithm.rejection != "seq_k3",
        "seq_k3 has no lower bound",
    ),
    _Switch(
        ("lora.alpha", "lora.dropout", "lora.targets", "run.merge_lora"),
        lambda config: config.lora.rank > 0,
        "lora.rank is 0: full weights are trained",
    ),
    _Switch(
        ("train.tokens_per_micro_batch",),
        lambda config: config.train.dynamic_batch,
        "train.dynamic_batch is off: micro-batches have train.rows_per_micro_batch rows",
    ),
    _Switch(
        ("train.rows_per_micro_batch",),
        lambda config: not config.train.dynamic_batch,
        "train.dynamic_batch is on: micro-batches are filled by tokens",
    ),
    _Switch(
        ("rollout.val_temperature", "rollout.val_n", "run.eval_every"),
        lambda config: bool(config.data.val),
        "data.val is empty",
    ),
)

WHY = {
    "gamma": "{advantage} does not discount",
    "lam": "only gae has a lambda",
    "clip_ratio": "the {loss} loss does not clip",
    "clip_low": "the {loss} loss does not clip",
    "clip_high": "the {loss} loss does not clip",
    "clip_ratio_c": "the {loss} loss has no dual clip",
    "tau_pos": "the {loss} loss has no gate",
    "tau_neg": "the {loss} loss has no gate",
    "clip_cov_ratio": "only the clip_cov loss reads it",
    "clip_cov_low": "only the clip_cov loss reads it",
    "clip_cov_high": "only the clip_cov loss reads it",
    "kl_cov_ratio": "only the kl_cov loss reads it",
    "kl_cov_coef": "only the kl_cov loss reads it",
    "dro_beta": "only the dro loss reads it",
}
"""Settings of estimators and losses: why the ones chosen do not read it."""


def unused_notes(resolved: Resolved) -> list[str]:
    """`not used: a, b (reason).` for what the user set and nothing reads, one line a reason."""
    by_reason: dict[str, list[str]] = {}
    for key in sorted(resolved.explicit):
        reason = _reason(resolved, key)
        if reason is not None and _says_something(resolved, key):
            by_reason.setdefault(reason, []).append(key)
    return [f"not used: {', '.join(keys)} ({reason})." for reason, keys in by_reason.items()]


def _says_something(resolved: Resolved, key: str) -> bool:
    """Whether the value asks for anything: null, false and 0 do not."""
    return resolved.value(key) not in (None, False)


def _reason(resolved: Resolved, key: str) -> str | None:
    """Why nothing reads `key`; None when something does, or may."""
    config = resolved.config
    section, _, name = key.partition(".")
    if section == "critic" and _has_critic(config) is False:
        return f"{config.algorithm.advantage} has no critic"
    if section == "algorithm" and name in WHY:
        return _unread_by_algorithm(config, name)
    for switch in SWITCHES:
        if key in switch.keys and not switch.is_on(config):
            return switch.reason
    return None


def _has_critic(config: Config) -> bool | None:
    """None for a user's own estimator, which nobody has looked at yet."""
    entry = ESTIMATORS.get(config.algorithm.advantage)
    return None if entry is None else "critic" in entry.needs


def _unread_by_algorithm(config: Config, name: str) -> str | None:
    algorithm = config.algorithm
    entries = (ESTIMATORS.get(algorithm.advantage), LOSSES.get(algorithm.loss))
    if None in entries or any(_reads(entry, name) for entry in entries if entry is not None):
        return None
    return WHY[name].format(advantage=algorithm.advantage, loss=algorithm.loss)


def _reads(entry: Entry, name: str) -> bool:
    settings = {*entry.settings, *entry.select_settings}
    return name in settings or (name == "clip_ratio" and bool(settings & {"clip_low", "clip_high"}))
