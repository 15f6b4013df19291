"""Config files: the YAML a user brings, verl's `defaults:` lists included."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from rlcli.config.names import FLAG_KEYS, OWN_KEYS, full_name, translate
from rlcli.config.schema import Config
from rlcli.config.value_parsing import flatten, load_yaml
from rlcli.errors import ConfigError

VERL_BASES = ("ppo_trainer", "_self_")
"""`defaults:` entries that our own defaults stand for."""
REWARD_FUNCTIONS = ("common/reward_functions.py", "../common/reward_functions.py")
JUDGE_FILE = "api_reward_config.yaml"
REWARD_FILE = "reward_model_config.yaml"
_SWITCHES = ("enable", "use_api")
_SECRET = re.compile(r"(?:\w*_)?(?:key|token|secret|password)|apikey", re.IGNORECASE)
_JUDGE = "reward.judge."
_GIVE = "Give a YAML file."


def find_file(path: Path, cwd: Path) -> Path:
    """The file `path` names, seen from `cwd`, with or without `.yaml`.

    Raises:
        ConfigError: there is none, or it is no file; names the nearest file of that folder.
    """
    if "\0" in str(path):
        raise ConfigError(f"{str(path)!r} is not a file name.")
    full = cwd / Path(os.path.expanduser(path))
    for candidate in (
        full,
        full.with_name(f"{full.name}.yaml"),
        full.with_name(f"{full.name}.yml"),
    ):
        if candidate.is_file():
            return candidate
    if full == cwd:
        raise ConfigError("--config has no value, or names this folder. Give it a YAML file.")
    if full.is_dir():
        hint = f"Use {path / 'config.json'}." if (full / "config.json").is_file() else _GIVE
        raise ConfigError(f"config file {path} is a folder. {hint}")
    if full.exists():
        raise ConfigError(f"config file {path} is a device or a pipe. {_GIVE}")
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


def local_settings(cwd: Path) -> list[tuple[str, dict[str, Any]]]:
    """(file name, its settings) of the guides' reward files that lie in `cwd`.

    Raises:
        ConfigError: broken YAML, an unknown key, or an API key written into the file.
    """
    found: list[tuple[str, dict[str, Any]]] = []
    if (cwd / JUDGE_FILE).is_file():
        settings = _flat(Path(JUDGE_FILE), load_yaml(cwd / JUDGE_FILE))
        refuse_repeats(JUDGE_FILE, settings, _judge_key)
        found.append((JUDGE_FILE, {_judge_key(key): value for key, value in settings.items()}))
    if (cwd / REWARD_FILE).is_file():
        found.append((REWARD_FILE, _flat(Path(REWARD_FILE), load_yaml(cwd / REWARD_FILE))))
    return found


def refuse_repeats(
    file: str, settings: Mapping[str, Any], meaning: Callable[[str], object]
) -> None:
    """Raises: ConfigError for two names of one setting in one file, with two values."""
    names: dict[str, str] = {}
    for name, value in settings.items():
        key = meaning(name)
        first = names.setdefault(key, name) if isinstance(key, str) else name
        if settings[first] != value:
            raise ConfigError(
                f"{file}: {first} and {name} are the same setting, with two values. Keep one."
            )


def _judge_key(key: str) -> str:
    """The setting that a key of api_reward_config.yaml means, with or without its prefix.

    Raises:
        ConfigError: an API key, or no setting of the judge.
    """
    last = key.rpartition(".")[2]
    if _SECRET.fullmatch(last):
        raise ConfigError(
            f"{JUDGE_FILE}: {key} does not belong into a file. Remove it, and export the key, "
            "e.g. DASHSCOPE_API_KEY."
        )
    if last in _SWITCHES:
        return f"{_JUDGE}enabled"
    plain = last.removeprefix("rm_")
    meant = [f"{_JUDGE}{plain}", *(FLAG_KEYS.get(name, "") for name in (f"rm_{plain}", last))]
    for name in meant:
        if name.startswith(_JUDGE) and name in OWN_KEYS:
            return name
    raise ConfigError(f"{JUDGE_FILE}: the judge has no setting {key}. {_elsewhere(key, last)}")


def _elsewhere(key: str, last: str) -> str:
    """Where a setting that is not the judge's belongs, or what the judge has."""
    for name in (key, last):
        found = translate(name)
        if isinstance(found, str) and not found.startswith("rollout."):
            return f"Put {full_name(name)} into a file for --config."
    names = [name.removeprefix(_JUDGE) for name in sorted(OWN_KEYS) if name.startswith(_JUDGE)]
    close = difflib.get_close_matches(last.removeprefix("rm_"), names, n=1)
    return f"Nearest: {close[0]}." if close else f"There are {', '.join(names)}."
