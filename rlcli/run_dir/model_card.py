"""README.md of a saved model: its base model, training settings and scores."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from rlcli.config.schema import Config
from rlcli.models.weight_files import ADAPTER, MERGED

CARD = "README.md"
PACKAGES = ("rlcli", "torch", "transformers", "peft")
SETTINGS = (
    *("algorithm.name", "algorithm.advantage", "algorithm.loss", "train.lr"),
    *("train.prompts_per_step", "train.mini_batch_prompts", "train.ppo_epochs", "rollout.n"),
    *("rollout.temperature", "data.max_prompt_tokens", "data.max_response_tokens", "run.seed"),
)
LORA_SETTINGS = ("lora.rank", "lora.alpha", "lora.dropout", "lora.targets")
Scores = Sequence[tuple[int, float]]


def write_cards(
    folder: Path, config: Config, *, step: int, evaluations: Scores, held_out_rewards: Scores
) -> None:
    """Write a card into a saved model's folder and its `merged`, replacing peft's template."""
    name, scores = ("pass@1", evaluations)
    if not scores:
        name, scores = ("mean reward", held_out_rewards)
    for place in (folder, folder / MERGED):
        if place.is_dir():
            is_adapter = (place / ADAPTER).is_file()
            text = _card(config, step, name, scores, is_adapter=is_adapter)
            (place / CARD).write_text(text, encoding="utf-8")


def write_cards_of(folder: Path, config: Config, state: Path) -> None:
    """Write the cards with scores from a checkpoint's state.json."""
    held = json.loads(state.read_text(encoding="utf-8"))
    monitor = held["monitor"]
    scores = {key: monitor.get(key, []) for key in ("evaluations", "held_out_rewards")}
    write_cards(folder, config, step=held["step"], **scores)


def _card(config: Config, step: int, name: str, scores: Scores, *, is_adapter: bool) -> str:
    base, algorithm = config.model.path, config.algorithm.name
    head: dict[str, Any] = {
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["rlcli", "reinforcement-learning", algorithm]
        + (["lora"] if config.lora.rank else []),
    }
    if not Path(os.path.expanduser(base)).exists() and base.count("/") == 1:
        head["base_model"] = base
    license_ = _license(base)
    if license_:
        head["license"] = license_
    keys = SETTINGS + (LORA_SETTINGS if config.lora.rank else ())
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False).strip(),
        "---",
        "",
        f"# {_short(base)}, trained with {algorithm}",
        "",
        f"{_kind(config, is_adapter)} `{base}` after {step:,} steps of {algorithm} with rlcli.",
        "",
        f"- Base model: `{base}`",
        f"- Training data: {_listed(config.data.train)}",
        f"- Reward: {f'`{config.reward.fn}`' if config.reward.fn else 'built-in rules'}"
        + (", with a judge" if config.reward.judge.enabled else ""),
        f"- License of the base model: {license_ or 'not stated in its folder'}",
        "",
        *_score_lines(config, name, scores),
        "",
        "## Settings",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| `{key}` | {_value(config, key)} |" for key in keys),
        "",
        "## Versions",
        "",
        ", ".join(f"{package} {found}" for package in PACKAGES if (found := _version(package))),
        "",
    ]
    return "\n".join(lines)


def _kind(config: Config, is_adapter: bool) -> str:
    if is_adapter:
        return "A LoRA adapter for"
    return "The model" if not config.lora.rank else "LoRA merged into"


def _short(path: str) -> str:
    return path.removeprefix("builtin:").rstrip("/").rsplit("/", 1)[-1]


def _listed(files: Sequence[str]) -> str:
    return ", ".join(f"`{file}`" for file in files) or "none"


def _score_lines(config: Config, name: str, scores: Scores) -> list[str]:
    if not scores:
        return ["It was not evaluated on held-out data."]
    first, last = scores[0], scores[-1]
    texts = [f"{score:.1%}" if name == "pass@1" else f"{score:.4g}" for _, score in (first, last)]
    rows = [f"| {at[0]:,} | {text} |" for at, text in zip((first, last), texts, strict=True)]
    return [
        f"Held-out {name} on {_listed(config.data.val)}:",
        "",
        f"| after step | {name} |",
        "|---|---|",
        *(rows if len(scores) > 1 else rows[:1]),
    ]


def _value(config: Config, key: str) -> str:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _license(base: str) -> str | None:
    """License in the front matter of the base model's card, if the card is on this machine."""
    file = Path(os.path.expanduser(base)) / CARD
    try:
        _, front, _ = file.read_text(encoding="utf-8").split("---", 2)
        license_ = yaml.safe_load(front)["license"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None
    return str(license_)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
