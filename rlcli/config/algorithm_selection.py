"""Which algorithm preset a run starts from."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlcli.compat.verl.keys import ESTIMATOR_PRESETS, ESTIMATORS_WITHOUT_PRESET
from rlcli.config.presets import Preset, find_preset, list_presets, load_preset
from rlcli.config.schema import AlgorithmConfig
from rlcli.config.settings import Level
from rlcli.errors import ConfigError

DEFAULT_ALGORITHM = "ppo"
GROUP_ALGORITHM = "grpo"
"""Preset under an estimator that has none of its own: all of those need groups."""
FUNCTION_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A wish for an algorithm. `estimator`: it was named by its estimator, `advantage=` to set."""

    name: str
    level: Level
    origin: str
    estimator: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The algorithm preset, who asked for it, and an estimator to put in place of its own."""

    preset: Preset
    origin: str
    level: Level
    advantage: str | None
    notes: list[str]


def select_algorithm(choices: Sequence[Choice], *, scale_by_std: bool) -> Selection:
    """The algorithm of the highest choice, the last among equals; ppo when there is none.

    scale_by_std: False turns the grpo estimator into dr_grpo, as verl's
    norm_adv_by_std_in_grpo=false does.

    Raises:
        ConfigError: no such algorithm; names the nearest.
    """
    chosen = Choice(name=DEFAULT_ALGORITHM, level=Level.DEFAULT, origin="default")
    for choice in choices:
        if choice.level >= chosen.level:
            chosen = choice
    name, advantage, notes = _start_of(chosen, scale_by_std)
    preset = load_preset(name, origin=chosen.origin)
    if preset.kind != "algorithm":
        raise ConfigError(
            f"{preset.name} (from {chosen.origin}) is a recipe. Use --preset {preset.name}."
        )
    return Selection(
        preset=preset,
        origin=chosen.origin,
        level=chosen.level,
        advantage=advantage,
        notes=[*notes, *_beaten(choices, chosen, preset)],
    )


def algorithm_preset(name: str) -> str | None:
    """The preset that an algorithm's or estimator's name spells."""
    return ESTIMATOR_PRESETS.get(name.lower()) or find_preset(name)


def _start_of(choice: Choice, scale_by_std: bool) -> tuple[str, str | None, list[str]]:
    """(preset name, estimator in place of its own, notes) of one choice."""
    lowered = choice.name.lower()
    if choice.estimator and (
        lowered in ESTIMATORS_WITHOUT_PRESET or FUNCTION_PATH.fullmatch(choice.name)
    ):
        advantage = ESTIMATORS_WITHOUT_PRESET.get(lowered, choice.name)
        note = f"{advantage} has no preset of its own: the other settings are {GROUP_ALGORITHM}'s."
        return GROUP_ALGORITHM, advantage, [note]
    name = _preset_name(choice)
    if choice.estimator and name == "grpo" and not scale_by_std:
        name = "dr_grpo"
    return name, None, []


def _preset_name(choice: Choice) -> str:
    found = algorithm_preset(choice.name)
    if found is not None:
        return found
    names = [preset.name for preset in list_presets() if preset.kind == "algorithm"]
    if choice.estimator:
        names += [*ESTIMATOR_PRESETS, *ESTIMATORS_WITHOUT_PRESET]
    close = difflib.get_close_matches(choice.name.lower(), names, n=2)
    hint = f"Nearest: {', '.join(close)}." if close else f"There are {', '.join(names)}."
    raise ConfigError(f"no algorithm {choice.name!r:.80} (from {choice.origin}). {hint}")


def _beaten(choices: Sequence[Choice], chosen: Choice, preset: Preset) -> list[str]:
    """Notes on command-line choices that lost and meant another estimator."""
    advantage = _advantage(preset)
    return [
        f"{chosen.origin} beats {choice.origin.removeprefix('override ')}."
        for choice in choices
        if choice is not chosen
        and choice.level >= Level.OVERRIDE
        and _wanted_advantage(choice) != advantage
    ]


def _wanted_advantage(choice: Choice) -> Any:
    name = algorithm_preset(choice.name)
    return _advantage(load_preset(name)) if name else choice.name


def _advantage(preset: Preset) -> Any:
    return preset.settings.get("algorithm.advantage", AlgorithmConfig().advantage)
