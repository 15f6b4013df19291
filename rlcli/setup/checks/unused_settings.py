"""Settings the user gave that this run does not read, with the reason."""

from __future__ import annotations

from rlcli.algos.registry import ESTIMATORS, LOSSES, Entry
from rlcli.config.resolved import Resolved
from rlcli.config.schema import Config
from rlcli.setup.checks.conditional_settings import SWITCHES, has_critic

WHY = {
    "gamma": "{advantage} does not discount",
    "gamma_turn": "{advantage} does not discount",
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
    """Whether the value asks for anything: null, false, 0 and an empty list do not."""
    return resolved.value(key) not in (None, False, [])


def _reason(resolved: Resolved, key: str) -> str | None:
    """Why nothing reads `key`; None when something does, or may."""
    config = resolved.config
    section, _, name = key.partition(".")
    if section == "critic" and has_critic(config) is False:
        return f"{config.algorithm.advantage} has no critic"
    if key.startswith("reward.judge.") and not config.reward.judge.enabled:
        return "reward.judge.enabled is off; --use_api_reward turns it on"
    if section == "algorithm" and name in WHY:
        return _unread_by_algorithm(config, name)
    for switch in SWITCHES:
        if key in switch.keys and not switch.is_on(config):
            return switch.reason
    return None


def _unread_by_algorithm(config: Config, name: str) -> str | None:
    algorithm = config.algorithm
    entries = (ESTIMATORS.get(algorithm.advantage), LOSSES.get(algorithm.loss))
    if None in entries or any(_reads(entry, name) for entry in entries if entry is not None):
        return None
    return WHY[name].format(advantage=algorithm.advantage, loss=algorithm.loss)


def _reads(entry: Entry, name: str) -> bool:
    settings = {*entry.settings, *entry.select_settings}
    return name in settings or (name == "clip_ratio" and bool(settings & {"clip_low", "clip_high"}))
