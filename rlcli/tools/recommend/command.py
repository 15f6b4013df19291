"""The command that trains with a pick, before memory is looked at."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from typing import Any

from rlcli.config.presets import load_preset
from rlcli.config.resolved import Resolved
from rlcli.config.resolver import resolve
from rlcli.config.schema import ModelConfig
from rlcli.setup import checks
from rlcli.tools.recommend.situation import JUDGED, Pick, Situation

FUNCTION = "reward.fn=reward.py:compute_score"
WITHOUT_PRESET = "gdpo"
SMALL_STEP = 256
"""Prompts per step on one GPU, where a preset was made for many."""
ADAPTERS = ("lora.rank=32", "lora.alpha=64")
ADAPTER_RATE = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """Options of `rlcli train`, and settings behind them."""

    flags: Mapping[str, Any] = field(hash=False)
    overrides: tuple[str, ...]

    def resolve(self) -> Resolved:
        """Settings that this version can train, environment and local files aside.

        Raises: ConfigError for a command that would be refused.
        """
        return _resolved(self)

    def words(self) -> list[str]:
        """The command line, a word each."""
        words = ["rlcli", "train"]
        for name, value in self.flags.items():
            words += [f"--{name}"] if value is True else [f"--{name}", _text(value)]
        return [*words, *self.overrides]

    def line(self) -> str:
        """The command line as a shell reads it."""
        return shlex.join(self.words())

    def plus(self, overrides: Sequence[str]) -> Command:
        """The same with more settings."""
        return replace(self, overrides=(*self.overrides, *overrides))

    def with_adapters(self) -> Command:
        """The same, training LoRA adapters."""
        more = replace(self, flags={**self.flags, "lr": ADAPTER_RATE})
        return more.plus(ADAPTERS)


@lru_cache(maxsize=256)
def _resolved(command: Command) -> Resolved:
    flags = {key: value for key, value in command.flags.items() if key != "algo"}
    algo, overrides = command.flags.get("algo"), command.overrides
    resolved = resolve(flags=flags, overrides=overrides, files=[], env={}, algo=algo)
    return checks.check_engines(checks.check(resolved))


def command_of(s: Situation, pick: Pick) -> Command:
    """The command for a task, all weights trained."""
    flags: dict[str, Any] = {}
    overrides = [f"rollout.n={pick.n}"]
    if pick.algorithm == WITHOUT_PRESET:
        overrides.insert(0, f"algorithm.adv_estimator={WITHOUT_PRESET}")
        overrides += [FUNCTION, "reward.weights={accuracy: 1.0, format: 0.2}"]
    else:
        flags["algo"] = pick.algorithm
    if s.model and s.model != ModelConfig().path:
        flags["model"] = s.model
    if s.task not in ("math", "experiment"):
        flags["data"] = "train.jsonl"
    if s.task == "experiment":
        flags |= {"batch_size": 32, "max_steps": 100}
    elif _prompts_per_step(pick.algorithm) > SMALL_STEP:
        flags["batch_size"] = SMALL_STEP
    if pick.algorithm != WITHOUT_PRESET:
        more_flags, more = _reward(s)
        flags, overrides = {**flags, **more_flags}, [*overrides, *more]
    if s.long_answers:
        overrides += ["data.max_response_tokens=4096", "model.gradient_checkpointing=true"]
    return Command(flags=flags, overrides=tuple(overrides))


@cache
def _prompts_per_step(algorithm: str) -> int:
    preset = load_preset("grpo" if algorithm == WITHOUT_PRESET else algorithm)
    return int(preset.settings.get("train.prompts_per_step", 0))


def _reward(s: Situation) -> tuple[dict[str, Any], list[str]]:
    if s.multi_reward:
        return {}, [FUNCTION]
    if s.task in JUDGED:
        flags: dict[str, Any] = {"use_api_reward": True}
        return flags | ({"rm_prompt_preset": "dialogue"} if s.task == "dialogue" else {}), []
    if s.task == "choice":
        return {}, ["reward.fn=exact"]
    return {}, [FUNCTION] if s.task in ("code", "other") else []


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
