"""Values as people write them: hydra's command line, environment variables and YAML files.

One scalar rule serves all three, because YAML 1.1 reads `1e-6` as a string, `no` as False,
`010` as 8 and `1:30` as 90.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import yaml

from rlcli.errors import ConfigError

MAX_FILE_BYTES = 1_000_000
MAX_SHOWN = 100
MAX_DIGITS = 300
"""More are no number of anything, and Python refuses to read over 4,300."""
MAX_NODES = 10_000
"""Values one file may hold: YAML aliases can make a small file unfold to gigabytes."""

_DIGITS = r"\d+(?:_\d+)*"
_INT = re.compile(rf"[-+]?{_DIGITS}")
_FLOAT = re.compile(rf"[-+]?(?:{_DIGITS}\.?(?:{_DIGITS})?|\.{_DIGITS})(?:[eE][-+]?\d+)?")
_COMMENT = re.compile(r"(^|\s)#.*$", re.DOTALL)
_VARIABLE = re.compile(
    r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\}|\{oc\.env:([A-Za-z_]\w*)(?:,([^}]*))?\})"
)


def one_line(text: str) -> str:
    """`text` for a message: one line of printable characters, cut where it is long."""
    shown = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    return shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]}..."


def scalar(text: str) -> Any:
    """Bool, None, int, float or the text itself. `no`, `yes`, `on` and `off` stay text."""
    lowered = text.lower()
    if lowered in ("true", "false"):
        return lowered == "true"
    if lowered in ("", "null", "none", "~"):
        return None
    if len(text) > MAX_DIGITS:
        return text
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def parse_value(text: str) -> Any:
    """What `key=text` means: `True`, `1e-6`, `null`, `'quoted'`, `['a','b']`, `{a: 1}`.

    A trailing ` # comment` is dropped.

    Raises:
        ConfigError: a list, mapping or quoted string is not closed.
    """
    text = text.strip()
    if text[:1] in ("[", "{", "'", '"'):
        return _parse_flow(text)
    return scalar(plain_text(text))


def plain_text(text: str) -> str:
    """The text without a trailing ` # comment` and outer blanks."""
    return _COMMENT.sub("", text.strip()).strip()


def _parse_flow(text: str) -> Any:
    try:
        value = yaml.load(text, _Loader)
        check_size(value)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = _unreadable(error) or getattr(error, "problem", None) or "it is not closed"
        raise ConfigError(
            f"cannot read {one_line(text)}: {one_line(problem)}. Check quotes and brackets."
        ) from None
    if isinstance(value, dict):
        return _split_unspaced(cast("dict[str, Any]", value))
    return value


def _unreadable(error: Exception) -> str | None:
    """Which character YAML does not allow, and where."""
    if not isinstance(error, yaml.reader.ReaderError):
        return None
    return f"character {error.position + 1} (U+{int(error.character):04X}) is not allowed in YAML"


def _split_unspaced(mapping: dict[str, Any]) -> dict[str, Any]:
    """Hydra's `{a:1}`, which YAML reads as a key `a:1` without a value."""
    return dict(
        _unspaced(key) if value is None and ":" in key else (key, value)
        for key, value in mapping.items()
    )


def _unspaced(item: str) -> tuple[str, Any]:
    key, _, value = item.partition(":")
    return key, scalar(value)


def expand(value: Any, env: Mapping[str, str]) -> Any:
    """`value` with `$NAME`, `${NAME}`, `${oc.env:NAME,default}` and a leading `~/` filled in.

    A name that `env` does not have stays as it is written.
    """
    if isinstance(value, str):
        return _expand_text(value, env)
    if isinstance(value, list):
        return [expand(item, env) for item in cast("list[Any]", value)]
    return value


def _expand_text(text: str, env: Mapping[str, str]) -> str:
    def lookup(match: re.Match[str]) -> str:
        name = match.group(1) or match.group(2) or match.group(3)
        return env.get(name, match.group(4) or match.group(0))

    expanded = _VARIABLE.sub(lookup, text)
    if expanded.startswith("~/"):
        return (env.get("HOME") or str(Path.home())) + expanded[1:]
    return expanded


class _Loader(yaml.SafeLoader):
    """Plain scalars by `scalar`, keys as text, a repeated key refused."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML reads the class attribute

    def construct_plain(self, node: yaml.ScalarNode) -> Any:
        text = str(self.construct_scalar(node))
        return scalar(text) if node.style is None else text

    def construct_unique(self, node: yaml.MappingNode) -> Iterator[dict[str, Any]]:
        mapping: dict[str, Any] = {}
        yield mapping
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be a word", key_node.start_mark
                )
            key = str(key_node.value)
            if key in mapping:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key} is there twice", key_node.start_mark
                )
            mapping[key] = self.construct_object(value_node, deep=True)  # pyright: ignore[reportUnknownMemberType]


_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_plain)
_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.construct_unique)


def check_size(value: Any) -> None:
    """Refuse a value that unfolds to more than MAX_NODES items or refers to itself."""
    num_nodes = 0
    pending = [value]
    while pending:
        item = pending.pop()
        num_nodes += 1
        if num_nodes > MAX_NODES:
            raise yaml.YAMLError("it unfolds to too many values")
        if isinstance(item, dict):
            pending.extend(cast("dict[str, Any]", item).values())
        elif isinstance(item, list):
            pending.extend(cast("list[Any]", item))


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML (or JSON) file; {} for an empty one.

    Raises:
        ConfigError: no such file, not text, not a mapping, broken YAML, or a key given twice.
    """
    text = _read_text(path)
    try:
        value = yaml.load(text, _Loader)
        check_size(value)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{where}: cannot read this YAML: {error.problem}.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = _unreadable(error) or one_line(str(error))
        raise ConfigError(f"{path}: cannot read this YAML: {problem}.") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected settings (`key: value` lines), found {value!r:.60}.")
    return cast("dict[str, Any]", value)


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{path}: over {MAX_FILE_BYTES:,} bytes; this is not a config file.")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"config file {path} does not exist.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a UTF-8 text file.") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a file name"
        raise ConfigError(f"cannot read config file {str(path)!r}: {reason}.") from None


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key to value: `{a: {b.c: 1}}` becomes `{a.b.c: 1}`. Empty mappings vanish.

    Raises:
        ConfigError: two spellings of one key (`a.b` and `a: {b: }`).
    """
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, dict):
            items = flatten(cast("dict[str, Any]", value), f"{dotted}.")
        else:
            items = {dotted: value}
        for name, item in items.items():
            if name in flat:
                raise ConfigError(f"{name} is there twice. Keep one.")
            flat[name] = item
    return flat
