"""Settings that verl lets pass without effect, applied as the user most likely meant them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import Any, cast

from rlcli.compat.verl.keys import FUNCTION_KEY
from rlcli.config.resolved import Resolved, show
from rlcli.config.schema import HELD_OUT, defaults
from rlcli.config.settings import Level, Setting
from rlcli.errors import ConfigError

FN = "reward.fn"
TRAIN, VAL = "data.train", "data.val"
RATIO = "algorithm.clip_ratio"
SIDES = ("algorithm.clip_low", "algorithm.clip_high")


def resolve_clip(resolved: Resolved, winners: Mapping[str, Setting]) -> Resolved:
    """clip_ratio given above the level of clip_low and clip_high sets both.

    Raises:
        ConfigError: the user gave clip_ratio and another clip_low or clip_high.
    """
    level = winners[RATIO].level
    if level is Level.DEFAULT:
        return resolved
    ratio = resolved.config.algorithm.clip_ratio
    bounds = resolved.config.algorithm.clip_bounds
    for side in SIDES:
        given = resolved.value(side)
        if winners[side].is_explicit and winners[RATIO].is_explicit and given not in (None, ratio):
            raise ConfigError(
                f"{resolved.where(RATIO)} and {resolved.where(side)} contradict each other.\n"
                "Keep clip_ratio for one range on both sides, or clip_low and clip_high without it."
            )
    lower = [side for side in SIDES if winners[side].level < level]
    changed = bounds != (ratio, ratio)
    note = (
        f"{resolved.sources[RATIO]}: {RATIO}={show(ratio)} sets clip_low and clip_high, which were "
        f"{show(bounds[0])} and {show(bounds[1])}. A larger range is a weaker constraint."
    )
    values = dict.fromkeys(lower, ratio)
    return resolved.override(values, note=note if changed else None, origin=resolved.sources[RATIO])


def resolve_kl(resolved: Resolved, winners: Mapping[str, Setting]) -> Resolved:
    """KL coefficients without a switch turn on the KL term they most likely meant.

    Where the user turned the switch off they stay without effect; preflight lists them.
    """
    if winners["algorithm.kl_coef"].is_explicit:
        resolved = _settle_reward_coef(resolved, winners)
    if winners["algorithm.kl_loss_coef"].is_explicit:
        resolved = _settle_loss_coef(resolved, winners)
    return resolved


def _settle_reward_coef(resolved: Resolved, winners: Mapping[str, Setting]) -> Resolved:
    algorithm = resolved.config.algorithm
    key = "algorithm.kl_coef"
    origin = resolved.sources[key]
    if algorithm.kl_in_reward or winners["algorithm.kl_in_reward"].is_explicit:
        return resolved
    if algorithm.kl_loss:
        if winners["algorithm.kl_loss_coef"].is_explicit:
            return _not_used(resolved, key, "the KL is in the loss and has algorithm.kl_loss_coef")
        value = {"algorithm.kl_loss_coef": algorithm.kl_coef}
        note = f"{origin} sets algorithm.kl_loss_coef: under {algorithm.name} the KL is in the loss"
        return resolved.override(
            value,
            origin=origin,
            note=f"{note} (algorithm.kl_in_reward=true puts it into the reward).",
        ).forget([key])
    if winners["algorithm.kl_loss"].is_explicit or algorithm.kl_coef == 0.0:
        return resolved
    note = f"{origin} turns algorithm.kl_in_reward on: no KL term is on in this run."
    return resolved.override({"algorithm.kl_in_reward": True}, note=note, origin=origin)


def _settle_loss_coef(resolved: Resolved, winners: Mapping[str, Setting]) -> Resolved:
    algorithm = resolved.config.algorithm
    key = "algorithm.kl_loss_coef"
    origin = resolved.sources[key]
    if algorithm.kl_loss or winners["algorithm.kl_loss"].is_explicit:
        return resolved
    if algorithm.kl_loss_coef == 0.0:
        return resolved
    if algorithm.kl_in_reward:
        reason = "the KL is in the reward; algorithm.kl_loss=true adds one to the loss"
        return _not_used(resolved, key, reason)
    note = f"{origin} turns algorithm.kl_loss on: no KL term is on in this run."
    return resolved.override({"algorithm.kl_loss": True}, note=note, origin=origin)


def _not_used(resolved: Resolved, key: str, reason: str) -> Resolved:
    return resolved.with_notes(f"not used: {key} ({reason}).").forget([key])


def resolve_function(winners: MutableMapping[str, Setting]) -> str | None:
    """Append custom_reward_function.name to reward.fn, as FILE.py:FUNCTION.

    Returns a note if reward.fn names no file.
    """
    name = winners.pop(FUNCTION_KEY, None)
    if name is None or name.value is None:
        return None
    fn = winners[FN]
    path = str(fn.value)
    if not fn.is_explicit or not path.endswith(".py"):
        return f"not used: {FUNCTION_KEY} (custom_reward_function.path names no file)."
    winners[FN] = replace(fn, value=f"{path}:{name.value}", text=None)
    return None


def resolve_validation(
    winners: MutableMapping[str, Setting], read: Sequence[Setting], dumps: Collection[str]
) -> str | None:
    """Evaluate on rows held out from data.train if the user sets data.train and not data.val.

    read: all settings read, in order. dumps: origins of files that hold every setting. Returns a
    note if this replaces a recipe's data.val.
    """
    train, val = winners[TRAIN], winners[VAL]
    if not train.is_explicit or _is_named(val, train, dumps):
        return None
    presets = [item.value for item in read if item.key == TRAIN and not item.is_explicit]
    before = presets[-1] if presets else defaults()[TRAIN]
    if _as_list(train.value) == _as_list(before):
        return None
    winners[VAL] = Setting(
        key=VAL, value=[HELD_OUT], origin=f"follows {TRAIN}", level=Level.DEFAULT
    )
    if val.level is not Level.RECIPE or not val.value:
        return None
    return (
        f"data.val={show(val.value)} of the {val.origin} is not used: this run has data of its "
        "own (data.train). Name its validation data with --val_data."
    )


def _is_named(val: Setting, train: Setting, dumps: Collection[str]) -> bool:
    """Whether the user chose `val`.

    Built-in validation data in a file that holds every setting counts only together with that
    file's training data, and only in a run's file or if the training data is built-in too.
    """
    if not val.is_explicit:
        return False
    if val.origin not in dumps or not _is_builtin(val):
        return True
    return train.origin == val.origin and (is_from_run(val) or _is_builtin(train))


def is_from_run(setting: Setting) -> bool:
    """Whether a run's own config.json gives this setting."""
    return setting.origin.endswith("config.json")


def _is_builtin(setting: Setting) -> bool:
    return all(str(source).startswith("builtin:") for source in _as_list(setting.value))


def _as_list(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return [*cast("Sequence[Any]", value)]
    return [] if value is None else [value]
