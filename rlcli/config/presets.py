"""Presets: YAML files that name an algorithm's or a recipe's settings, only where not default."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlcli.config.value_parsing import flatten, load_yaml
from rlcli.errors import ConfigError

Kind = Literal["algorithm", "recipe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """One preset file. `settings` has dotted keys; `note` is told to whoever uses it."""

    name: str
    kind: Kind
    title: str
    note: str | None
    path: Path
    settings: dict[str, Any]


def presets_folder() -> Path:
    """Where the presets lie: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "_presets"
    return installed if installed.is_dir() else package.parent / "presets"


def preset_paths() -> dict[str, Path]:
    """Name to file, by name."""
    return {path.stem: path for path in sorted(presets_folder().glob("*.yaml"))}


def list_presets() -> list[Preset]:
    """Every preset: algorithms first, then recipes, each by name."""
    presets = [_load(name, path) for name, path in preset_paths().items()]
    return sorted(presets, key=lambda preset: (preset.kind, preset.name))


def squash(name: str) -> str:
    """`name` without case and punctuation, so that DrGRPO, dr-grpo and dr_grpo are one."""
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("++", "plusplus"))


def find_preset(name: str) -> str | None:
    """The preset that `name` spells, case and punctuation aside; never a path."""
    paths = preset_paths()
    if name in paths:
        return name
    by_squashed = {squash(candidate): candidate for candidate in paths}
    return by_squashed.get(squash(name)) if not set("/\\\0") & set(name) else None


def load_preset(name: str, *, origin: str | None = None) -> Preset:
    """The preset called `name`.

    Raises:
        ConfigError: there is none; names the nearest ones.
    """
    found = find_preset(name)
    if found is None:
        names = list(preset_paths())
        close = difflib.get_close_matches(name.lower(), names, n=2) or names
        where = f" (from {origin})" if origin else ""
        raise ConfigError(f"no preset {name!r}{where}. Nearest: {', '.join(close)}.")
    return _load(found, preset_paths()[found])


def _load(name: str, path: Path) -> Preset:
    content = load_yaml(path)
    kind, title, note = (content.pop(key, None) for key in ("kind", "title", "note"))
    if kind not in ("algorithm", "recipe") or not isinstance(title, str):
        raise ConfigError(f"{path}: a preset needs `kind: algorithm` or `recipe`, and a `title:`.")
    return Preset(
        name=name,
        kind=kind,
        title=title,
        note=None if note is None else str(note),
        path=path,
        settings=flatten(content),
    )
