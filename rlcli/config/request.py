"""The settings that a user gave for one run, on a command line or to `rlcli.train`."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from rlcli.config.names import FLAG_KEYS
from rlcli.config.resolved import Resolved
from rlcli.config.resolver import resolve
from rlcli.config.value_parsing import flatten, parse_value
from rlcli.errors import ConfigError

Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """Settings as given. flags: by option name. overrides: `key=value` texts."""

    flags: Values = field(default_factory=dict[str, Any])
    overrides: list[str] = field(default_factory=list[str])
    files: list[Path] = field(default_factory=list[Path])
    algo: str | None = None
    preset: str | None = None
    ignore_unsupported: bool = False

    def resolve(self, **flags: Any) -> Resolved:
        """The resolved settings in this directory and environment, with `flags` on top.

        Raises: ConfigError.
        """
        return resolve(
            flags={**self.flags, **flags},
            overrides=self.overrides,
            files=self.files,
            env=dict(os.environ),
            algo=self.algo,
            preset=self.preset,
            ignore_unsupported=self.ignore_unsupported,
        )

    def words(self, *, without: Collection[str] = ()) -> list[str]:
        """The arguments of `rlcli train` with the same meaning. without: flags left out."""
        words = [*self.overrides]
        for name, value in self.flags.items():
            if name in without:
                continue
            if isinstance(value, bool):
                words.append(f"--{name}" if value else f"--no_{name}")
            else:
                items = cast("list[Any]", value if isinstance(value, list) else [value])
                words += [f"--{name}={item}" for item in items]
        words += [f"--config={file}" for file in self.files]
        words += [f"--algo={self.algo}"] if self.algo else []
        words += [f"--preset={self.preset}"] if self.preset else []
        return [*words, "--ignore_unsupported"] if self.ignore_unsupported else words


def request_of(
    config: Values | str | Path | Sequence[str | Path] | None, settings: Values
) -> RunRequest:
    """The request that Python values mean.

    config: YAML file, several, or a mapping of settings, nested or with dotted keys. settings: as
    on the command line, by option name or key; sections may be mappings. They win over config.

    Raises: ConfigError for a value that no setting can have.
    """
    below: dict[str, Any] = {}
    files: list[Path] = []
    if isinstance(config, Mapping):
        below = dict(config)
    elif config is not None:
        names = [config] if isinstance(config, str | Path) else config
        files = [Path(name) for name in names]
    above = dict(settings)
    preset = above.pop("preset", below.pop("preset", None))
    ignores = above.pop("ignore_unsupported", below.pop("ignore_unsupported", False))
    algo = above.pop("algo", None)
    overrides = [word for name, value in below.items() for word in _overrides(name, value)]
    flags: dict[str, Any] = {}
    for name, value in above.items():
        if name not in FLAG_KEYS or isinstance(value, Mapping):
            overrides += _overrides(name, value)
        elif value is not None:
            flags[name] = _plain(name, value)
    return RunRequest(
        flags=flags,
        overrides=overrides,
        files=files,
        algo=None if algo is None else str(algo),
        preset=None if preset is None else str(preset),
        ignore_unsupported=bool(ignores),
    )


def _overrides(name: str, value: Any) -> list[str]:
    """`key=value` for a setting, or for each in a section."""
    return [f"{key}={_text(item)}" for key, item in flatten({name: _plain(name, value)}).items()]


def _plain(name: str, value: Any) -> Any:
    """`value` of types that a YAML file holds. Raises: ConfigError."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        entries = cast("Mapping[Any, Any]", value)
        return {str(key): _plain(f"{name}.{key}", item) for key, item in entries.items()}
    if isinstance(value, list | tuple):
        return [_plain(name, item) for item in cast("Sequence[Any]", value)]
    if hasattr(value, "item") and getattr(value, "shape", None) == ():  # a number of numpy or torch
        return value.item()
    raise ConfigError(
        f"{name} = {value!r:.80}: expected text, a number, true or false, a list or a mapping."
    )


def _text(value: Any) -> str:
    """`value` as typed on a command line, so that it is read back as it is."""
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    try:
        read = parse_value(value)
    except ConfigError:
        read = None
    if value and (read == value or isinstance(read, bool | int | float)):
        return value
    return json.dumps(value, ensure_ascii=False)
