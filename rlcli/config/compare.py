"""Two configurations side by side, and a configuration as a file."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from rlcli.config.changes import changes
from rlcli.config.files import find_file
from rlcli.config.names import ENV_KEYS
from rlcli.config.presets import Preset, find_preset
from rlcli.config.resolved import Resolved
from rlcli.config.resolver import resolve
from rlcli.config.schema import defaults, field_of
from rlcli.errors import ConfigError


def without_settings(env: Mapping[str, str], *, keep: Collection[str] = ()) -> dict[str, str]:
    """`env` without the variables that set something, those in `keep` aside."""
    return {name: text for name, text in env.items() if name not in ENV_KEYS or name in keep}


def resolve_named(name: str, cwd: Path, env: Mapping[str, str]) -> Resolved:
    """What a preset, a config file, or a run directory means by itself, ENV_KEYS aside.

    Raises:
        ConfigError: `name` is none of these, or does not resolve.
    """
    plain = without_settings(env)
    run = cwd / Path(os.path.expanduser(name))
    if (run / "config.json").is_file() and (run / "sources.json").is_file():
        return resolve(flags={}, overrides=[], files=[run / "config.json"], env=plain, cwd=cwd)
    if find_preset(name) is not None:
        return resolve(flags={}, overrides=[], files=[], env=plain, cwd=cwd, preset=name)
    try:
        path = find_file(Path(name), cwd)
    except ConfigError:
        raise ConfigError(
            f"{name} is no preset, no config file and no run directory (looked in {cwd})."
        ) from None
    return resolve(flags={}, overrides=[], files=[path], env=plain, cwd=cwd)


def differences(first: Resolved, second: Resolved) -> list[tuple[str, Any, Any]]:
    """(key, value in first, value in second) where the two differ, names aside."""
    return changes(first.values(), second.values())


def as_yaml(values: Mapping[str, Any], comments: Mapping[str, str]) -> Iterator[str]:
    """One `key: value  # comment` line per dotted key: YAML that `--config` reads."""
    lines = {key: f"{key}: {json.dumps(item, ensure_ascii=False)}" for key, item in values.items()}
    width = min(max((len(line) for line in lines.values()), default=0), 48)
    for key, line in lines.items():
        comment = comments.get(key)
        yield f"{line:<{width}}  # {comment}" if comment else line


def starter(resolved: Resolved) -> str:
    """A config file with every setting of `resolved` that is not a default, and its meaning."""
    standard = defaults()
    name = resolved.config.algorithm.name
    values = {"algorithm.name": name}
    values |= {key: value for key, value in resolved.values().items() if value != standard[key]}
    meaning = {key: (field_of(key).description or "").rstrip(".") for key in values}
    lines = [*as_yaml(values, meaning)]
    return "\n".join(["# rlcli train --config THIS_FILE", *lines, ""])


def preset_as_config(preset: Preset) -> str:
    """A preset as a config file to edit: its name chosen, its own settings on top."""
    values = dict(preset.settings)
    if preset.kind == "algorithm":
        values = {"algorithm.name": preset.name, **values}
    head = [f"# {preset.title}", *([f"# {preset.note}"] if preset.note else [])]
    meaning = {key: (field_of(key).description or "").rstrip(".") for key in values}
    return "\n".join([*head, *as_yaml(values, meaning), ""])
