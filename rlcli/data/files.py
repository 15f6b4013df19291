"""Records of parquet, json and jsonl files, each with the line or row it came from."""

from __future__ import annotations

import difflib
import gzip
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlcli.errors import DataError

ASSETS = Path(__file__).resolve().parent.parent / "assets"
BUILTIN = {
    "sums": "sums/train.jsonl",
    "sums_val": "sums/val.jsonl",
    "math_reasoning": "math_reasoning.json",
    "math_reasoning_val": "math_reasoning_val.json",
}
"""Data sets that come with the package: `builtin:NAME` to file."""
EXTENSIONS = (".parquet", ".json", ".jsonl")
PREPARED = ("gsm8k", "math", "humaneval")

Record = tuple[int, Any]
"""Line (jsonl) or row number (json, parquet), both from 1, and what stands there."""


def nearest(name: str, known: list[str], *, label: str = "nearest") -> str:
    """` (nearest: a, b)`, or nothing when no known name resembles this one."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return f" ({label}: {', '.join(close)})" if close else ""


def find_file(source: str, *, base: Path | None = None) -> Path:
    """The file that a data source names: a path, or `builtin:NAME`.

    `~` and `$NAME` are expanded; a relative path starts at `base` (none: working directory).

    Raises:
        DataError: there is no such file.
    """
    if source.startswith("builtin:"):
        return _find_builtin(source.removeprefix("builtin:"))
    expanded = os.path.expanduser(os.path.expandvars(source))
    unset = re.search(r"\$\{?(\w+)\}?", expanded)
    path = (base or Path()) / expanded
    if path.is_file():
        return path
    if unset:
        raise DataError(f"data file {source}: the variable {unset[1]} is not set.")
    if path.is_dir():
        inside = sorted(child.name for child in path.iterdir() if child.suffix in EXTENSIONS)
        listing = f" It holds: {', '.join(inside[:8])}." if inside else ""
        raise DataError(f"{source} is a folder, expected a data file.{listing}")
    raise DataError(_missing(source, path))


def _find_builtin(name: str) -> Path:
    if name not in BUILTIN:
        raise DataError(
            f"there is no data set builtin:{name}{nearest(name, list(BUILTIN))}. "
            f"Built in: {', '.join(BUILTIN)}."
        )
    return ASSETS / BUILTIN[name]


def _missing(source: str, path: Path) -> str:
    if path.parent.is_dir():
        names = [child.name for child in path.parent.iterdir() if child.is_file()]
        where = nearest(path.name, names, label="in that folder")
    else:
        where = f" (there is no folder {path.parent})"
    name = next((name for name in PREPARED if name in source.lower()), PREPARED[0])
    return (
        f"data file {source} is not there{where}. Correct the path, or write it with: "
        f"rlcli data prepare {name} --local_dir {path.parent}"
    )


def iter_records(path: Path) -> Iterator[Record]:
    """Records of one file, in order. A jsonl line that is no JSON is a `DataError` value.

    So one bad line does not hide the others; what makes the whole file unreadable is raised.

    Raises:
        DataError: unknown extension, wrong encoding, malformed or empty file.
    """
    compressed = path.suffix == ".gz"
    extension = Path(path.stem).suffix if compressed else path.suffix
    if extension.lower() == ".parquet" and not compressed:
        yield from enumerate(_read_parquet(path), start=1)
    elif extension.lower() == ".json":
        yield from enumerate(_read_json(path, _read_text(path, compressed=compressed)), start=1)
    elif extension.lower() == ".jsonl":
        yield from _read_jsonl(path, _read_text(path, compressed=compressed))
    else:
        raise DataError(
            f"{path.name}: unknown data format '{path.suffix}', expected one of "
            f"{', '.join(EXTENSIONS)}. Convert the file or correct its name."
        )


def _read_parquet(path: Path) -> list[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path.name} is not a readable parquet file: {reason}") from error
    if not rows:
        raise DataError(f"{path.name} is empty: it has no rows.")
    return rows


def _read_text(path: Path, *, compressed: bool) -> str:
    try:
        content = gzip.decompress(path.read_bytes()) if compressed else path.read_bytes()
    except (OSError, EOFError) as error:
        raise DataError(f"{path.name} cannot be read: {error}") from error
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path.name} is UTF-16, expected UTF-8. Save it as UTF-8.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path.name}:{line}: byte 0x{content[error.start]:02x} at offset {error.start} "
            "is not UTF-8. Save the file as UTF-8."
        ) from error
    if not text.strip():
        raise DataError(f"{path.name} is empty: it has no rows.")
    return text


def _read_json(path: Path, text: str) -> list[Any]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        hint = " One object per line is .jsonl: rename it." if "Extra data" in error.msg else ""
        raise DataError(f"{path.name}:{error.lineno}: not JSON: {error.msg}.{hint}") from error
    except RecursionError as error:
        raise DataError(f"{path.name}: not usable JSON: nested too deeply.") from error
    if not isinstance(rows, list):
        raise DataError(
            f"{path.name} holds {_json_kind(rows)}, expected a list of objects: "
            '[{"prompt": ..., "ground_truth": ..., "data_source": ...}, ...].'
        )
    if not rows:
        raise DataError(f"{path.name} is empty: its list has no rows.")
    return rows


def _read_jsonl(path: Path, text: str) -> Iterator[Record]:
    # Not splitlines(): it would also cut at U+2028, which JSON strings may contain.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        yield number, _parse_line(f"{path.name}:{number}", line)


def _parse_line(row_id: str, line: str) -> Any:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        return DataError(
            f"{row_id}: not JSON: {error.msg} (column {error.colno}). Repair the line."
        )
    except ValueError as error:
        return DataError(f"{row_id}: not usable JSON: {error}. Repair the line.")
    except RecursionError:
        return DataError(f"{row_id}: not usable JSON: nested too deeply. Repair the line.")
    return record


def _json_kind(value: Any) -> str:
    kinds = {dict: "one object", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")
