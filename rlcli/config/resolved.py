"""A resolved configuration with the origin of every value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from rlcli.config.base import Section, leaves
from rlcli.config.schema import Config
from rlcli.config.value_parsing import one_line

SHRUNK = "shrunk to "
"""In the origin of a value that had to give, after who gave it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """`sources`: origin of every dotted key. `explicit`: keys the user set, not a preset.

    `notes` are what the user should be told, one line each.
    """

    config: Config
    sources: dict[str, str]
    notes: list[str]
    explicit: frozenset[str]

    def values(self) -> dict[str, Any]:
        """Every value by dotted key."""
        return leaves(self.config)

    def value(self, key: str) -> Any:
        """The value of dotted `key`."""
        return self.values()[key]

    def where(self, key: str) -> str:
        """`key=value (from origin)`, for messages."""
        return f"{key}={one_line(show(self.value(key)))} (from {self.sources[key]})"

    def override(
        self, values: Mapping[str, Any], *, note: str | None = None, origin: str | None = None
    ) -> Resolved:
        """The same with `values` (dotted keys, checked already) set; `origin` if it changed."""
        sources = self.sources if origin is None else self.sources | dict.fromkeys(values, origin)
        return replace(
            self,
            config=with_values(self.config, values),
            sources=sources,
            notes=self.notes if note is None else [*self.notes, note],
        )

    def clamp_to_data(self, config: Config) -> Resolved:
        """The same with the settings of `config`, which had to fit the data."""
        old, new = leaves(self.config), leaves(config)
        changed = {key: value for key, value in new.items() if old[key] != value}
        sources = {key: shrunk(self.sources[key], "the data") for key in changed}
        return replace(self.override(changed), sources=self.sources | sources)

    def with_notes(self, *notes: str) -> Resolved:
        """The same with more notes."""
        return replace(self, notes=[*self.notes, *notes])

    def forget(self, keys: Sequence[str]) -> Resolved:
        """The same, `keys` no longer counting as set by the user (they were dealt with)."""
        return replace(self, explicit=self.explicit - set(keys))


def shrunk(origin: str, size: str) -> str:
    """The origin of a value of `origin` that had to give way to `size`."""
    return f"{origin.partition(f', {SHRUNK}')[0]}, shrunk to {size}"


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """`config` with dotted keys set to values that need no checking."""
    for key, value in values.items():
        config = cast("Config", _replaced(config, key.split("."), value))
    return config


def _replaced(section: Section, path: Sequence[str], value: Any) -> Section:
    name, *rest = path
    inner = _replaced(getattr(section, name), rest, value) if rest else value
    return section.model_copy(update={name: inner})


def show(value: Any) -> str:
    """`value` as a user would type it: `true`, `0.3`, `1e-06`."""
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)
