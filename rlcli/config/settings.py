"""One setting with its origin, and the form its field wants."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cache
from typing import Any, Literal, cast, get_args, get_origin

from rlcli.config.names import MAPPING_KEYS, OWN_KEYS, PROMPT_KEYS, full_name, spell, translate
from rlcli.config.peer_names import suggestion
from rlcli.config.schema import field_of
from rlcli.errors import ConfigError

_REFERENCE = re.compile(r"\$\{([^}]*)\}")
_KINDS: dict[Any, str] = {str: "text", bool: "bool", int: "number", float: "number"}
MAX_REFERENCES = 10
"""References one value may go through; more is a circle."""


class Level(IntEnum):
    """Where a setting comes from; the higher wins."""

    DEFAULT = 0
    ALGORITHM = 1
    RECIPE = 2
    FILE = 3
    ENV = 4
    OVERRIDE = 5
    FLAG = 6


USER_LEVEL = Level.FILE
"""From here up the user said it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A value for one of our keys. `text` is what was typed, where it was typed."""

    key: str
    value: Any
    origin: str
    level: Level
    text: str | None = None

    @property
    def is_explicit(self) -> bool:
        """The user set it, rather than a default or a preset."""
        return self.level >= USER_LEVEL


@cache
def kinds(key: str) -> frozenset[str]:
    """Of "text", "list", "mapping", "bool", "number": what the field of `key` can hold."""
    return frozenset(_kinds_of(field_of(key).annotation))


def _kinds_of(annotation: Any) -> set[str]:
    origin = get_origin(annotation)
    if origin is Literal:
        return {"text"}
    if origin is list:
        return {"list"}
    if origin is dict:
        return {"mapping"}
    if annotation in _KINDS:
        return {_KINDS[annotation]}
    return {kind for argument in get_args(annotation) for kind in _kinds_of(argument)}


def fit(setting: Setting) -> Setting:
    """`setting` in the form its field wants: numbers as text, one word as a list, verl's words.

    Raises:
        ConfigError: true or false where a number goes, or a character no setting can hold.
    """
    value = spell(setting.key, setting.value)
    kind = kinds(setting.key)
    if isinstance(value, bool) and "number" in kind:
        raise ConfigError(f"{describe(setting)}: expected a number.")
    if isinstance(value, (bool, int, float)) and "text" in kind:
        value = setting.text if setting.text is not None else str(value)
    if "list" in kind and "text" not in kind and isinstance(value, (str, int, float)):
        value = [str(value)]
    if isinstance(value, list):
        items = cast("list[Any]", value)
        value = [str(item) if isinstance(item, (bool, int, float)) else item for item in items]
    _check_text(setting, value)
    return replace(setting, value=value)


def _check_text(setting: Setting, value: Any) -> None:
    """Raises: ConfigError for text that no file name and no terminal can hold."""
    for text in cast("list[Any]", value if isinstance(value, list) else [value]):
        if isinstance(text, str) and "\0" in text:
            raise ConfigError(f"{describe(setting)}: a value cannot hold a NUL character.")
        if isinstance(text, str) and any("\ud800" <= char <= "\udfff" for char in text):
            raise ConfigError(f"{describe(setting)}: not UTF-8 text.")


def describe(setting: Setting) -> str:
    """`train.lr = 'abc' (from override train.lr=abc)`."""
    return f"{setting.key} = {setting.value!r:.80} (from {setting.origin})"


def merge(settings: Sequence[Setting]) -> dict[str, Setting]:
    """Key to the winning setting: the highest level, and the last among equals.

    Entries of a mapping setting (`data.fields.prompt`) are gathered under its key.
    """
    winners: dict[str, Setting] = {}
    for setting in settings:
        present = winners.get(setting.key)
        if present is None or setting.level >= present.level:
            winners[setting.key] = setting
    for key in MAPPING_KEYS:
        entries = {name: winners.pop(name) for name in [*winners] if name.startswith(f"{key}.")}
        if entries:
            mapping = {name.removeprefix(f"{key}."): entry.value for name, entry in entries.items()}
            top = max(entries.values(), key=lambda entry: entry.level)
            winners[key] = replace(top, key=key, value=mapping, text=None)
    return winners


def resolve_references(winners: Mapping[str, Setting]) -> dict[str, Setting]:
    """`winners` with every `${other.setting}` replaced by that setting's value.

    Raises:
        ConfigError: the other setting does not exist, has no value here, or refers back.
    """

    def fill(value: Any, setting: Setting, depth: int) -> Any:
        if isinstance(value, list):
            return [fill(item, setting, depth) for item in cast("list[Any]", value)]
        if not isinstance(value, str) or "${" not in value:
            return value
        if depth > MAX_REFERENCES:
            raise ConfigError(f"{describe(setting)}: the references go round in a circle.")
        whole = _REFERENCE.fullmatch(value)
        if whole:
            return fill(_referenced(whole.group(1), setting, winners), setting, depth + 1)
        return _REFERENCE.sub(_part_filler(fill, setting, winners, depth), value)

    return {
        key: setting
        if key in PROMPT_KEYS
        else replace(setting, value=fill(setting.value, setting, 0))
        for key, setting in winners.items()
    }


def _part_filler(
    fill: Callable[[Any, Setting, int], Any],
    setting: Setting,
    winners: Mapping[str, Setting],
    depth: int,
) -> Callable[[re.Match[str]], str]:
    def part(match: re.Match[str]) -> str:
        return str(fill(_referenced(match.group(1), setting, winners), setting, depth + 1))

    return part


def _referenced(name: str, setting: Setting, winners: Mapping[str, Setting]) -> Any:
    key = translate(name.strip())
    if isinstance(key, str) and key in OWN_KEYS:
        return winners[key].value
    hint = suggestion(full_name(name.strip())) or " An environment variable must be set."
    raise ConfigError(f"{describe(setting)}: there is no setting {name.strip()!r}.{hint}")
