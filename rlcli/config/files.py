"""Config files: the YAML a user brings, verl's `defaults:` lists included."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from rlcli.config.schema import Config
from rlcli.config.values import flatten, load_yaml
from rlcli.errors import ConfigError

VERL_BASES = ("ppo_trainer", "_self_")
"""`defaults:` entries that our own defaults stand for."""
REWARD_FUNCTIONS = ("common/reward_functions.py", "../common/reward_functions.py")
UNREAD = {
    "api_reward_config.yaml": "rewards come from functions: reward.fn",
    "reward_model_config.yaml": "the reward is reward.fn alone",
}
"""Files of the guides in the working directory that have nothing to configure here."""


def find_file(path: Path, cwd: Path) -> Path:
    """The file `path` names, seen from `cwd`, with or without `.yaml`.

    Raises:
        ConfigError: there is none; names the nearest file of that folder.
    """
    if "\0" in str(path):
        raise ConfigError(f"{str(path)!r} is not a file name.")
    full = cwd / path.expanduser()
    for candidate in (
        full,
        full.with_name(f"{full.name}.yaml"),
        full.with_name(f"{full.name}.yml"),
    ):
        if candidate.is_file():
            return candidate
    names = [entry.name for entry in full.parent.glob("*.y*ml")] if full.parent.is_dir() else []
    close = difflib.get_close_matches(full.name, names, n=1)
    hint = f" Nearest: {full.parent / close[0]}." if close else ""
    raise ConfigError(f"config file {path} does not exist (looked in {full.parent}).{hint}")


def load_config_file(path: Path, *, seen: Sequence[Path] = ()) -> list[tuple[Path, dict[str, Any]]]:
    """(file, its settings by dotted key) for `path` and the files its `defaults:` name, in order.

    Raises:
        ConfigError: broken YAML, files that name each other, an unknown `defaults:` entry.
    """
    if path.resolve() in seen:
        raise ConfigError(f"{path}: its `defaults:` lead back to itself.")
    content = load_yaml(path)
    bases = cast("object", content.pop("defaults", None) or [])
    own = [(path, _flat(path, content))]
    if not isinstance(bases, list):
        raise ConfigError(f"{path}: `defaults:` must be a list, such as [ppo_trainer, _self_].")
    before: list[tuple[Path, dict[str, Any]]] = []
    after: list[tuple[Path, dict[str, Any]]] = []
    files = before
    for base in cast("list[Any]", bases):
        if base == "_self_":
            files = after
        elif base not in VERL_BASES:
            sibling = _sibling(path, base)
            files += load_config_file(sibling, seen=(*seen, path.resolve()))
    return [*before, *own, *after]


def _flat(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    try:
        return flatten(content)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _sibling(path: Path, base: Any) -> Path:
    if isinstance(base, str):
        sibling = path.parent / f"{base.removesuffix('.yaml')}.yaml"
        if sibling.is_file():
            return sibling
    raise ConfigError(
        f"{path}: `defaults:` names {base!r}, which is not a file beside it. "
        "ppo_trainer and _self_ are understood; copy other settings into this file."
    )


def is_resolved_config(settings: dict[str, Any]) -> bool:
    """Whether a run wrote these (its config.json): every section is there."""
    return {key.partition(".")[0] for key in settings} >= set(Config.model_fields)


def reward_function_here(cwd: Path) -> str | None:
    """`file.py:compute_score` of the guides' common/reward_functions.py, when it is there."""
    for name in REWARD_FUNCTIONS:
        if (cwd / name).is_file():
            return f"{name}:compute_score"
    return None


def unread_files_here(cwd: Path) -> list[str]:
    """A note for each of the guides' files in `cwd` that is not read."""
    return [
        f"not used: {name} ({reason})." for name, reason in UNREAD.items() if (cwd / name).is_file()
    ]
