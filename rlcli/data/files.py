"""Records of parquet, json and jsonl files, each with the line or row it came from."""

from __future__ import annotations

import difflib
import fnmatch
import glob
import gzip
import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlcli import hub
from rlcli.errors import DataError, DataNotFoundError
from rlcli.hub import Hub

ASSETS = Path(__file__).resolve().parent.parent / "assets"
BUILTIN = {
    "sums": "sums/train.jsonl",
    "sums_val": "sums/val.jsonl",
    "lookup": "lookup/train.jsonl",
    "lookup_val": "lookup/val.jsonl",
    "math_reasoning": "math_reasoning.json",
    "math_reasoning_val": "math_reasoning_val.json",
}
"""Data sets that come with the package: `builtin:NAME` to file."""
EXTENSIONS = (".parquet", ".json", ".jsonl")
PREPARED = r"(?<![a-z0-9])(gsm8k|math|humaneval)(?![a-z0-9]|_reasoning)"
"""In the path of a file that `data prepare` writes."""
SHOWN_FILES = 6

Record = tuple[int, Any]
"""Line (jsonl) or row number (json, parquet), both from 1, and what stands there."""


def nearest(name: str, known: list[str], *, label: str = "nearest") -> str:
    """` (nearest: a, b)`, or nothing when no known name resembles this one."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return f" ({label}: {', '.join(close)})" if close else ""


def printable(value: Any, limit: int = 300) -> str:
    """A value in one line that every terminal can show, cut in the middle of a long one."""
    text = value if isinstance(value, str) else repr(value)
    if len(text) > limit:
        text = f"{text[: limit * 2 // 3]} ... {text[-limit // 3 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def kind_of(value: Any) -> str:
    """The type of a JSON value, for messages: `null`, `a number (3)`, `text`, `a list`."""
    if value is None:
        return "null"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"a number ({printable(value, 40)})"
    names = {str: "text", bool: "a boolean", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


def find_files(source: str, *, base: Path | None = None) -> list[Path]:
    """The files that a data source names.

    A path or a pattern of paths (`~` and `$NAME` are expanded; a relative one starts at `base`,
    none: working directory), `builtin:NAME`, or files of a data set on a hub:
    `hf:OWNER/NAME/FILE` and `modelscope:OWNER/NAME/FILE`, where FILE may be a pattern.

    Raises:
        DataNotFoundError: there is no such file.
        DataError: a folder, a variable that is not set, an unknown built-in name.
    """
    prefix, colon, rest = source.partition(":")
    if colon and prefix == "builtin":
        return [_find_builtin(rest)]
    if colon and prefix in ("hf", "modelscope"):
        return _find_on_hub("hf" if prefix == "hf" else "modelscope", rest)
    expanded = os.path.expanduser(os.path.expandvars(source))
    path = (base or Path()) / expanded
    if path.is_file():
        return [path]
    if unset := re.search(r"\$\{?(\w+)\}?", expanded):
        raise DataError(f"data file {source}: the variable {unset[1]} is not set.")
    if path.is_dir():
        inside = sorted(child.name for child in path.iterdir() if child.suffix in EXTENSIONS)
        listing = f" It holds: {', '.join(inside[:8])}." if inside else ""
        raise DataError(f"{source} is a folder, expected a data file.{listing}")
    found = [Path(name) for name in sorted(glob.glob(str(path))) if Path(name).is_file()]
    if not found:
        raise DataNotFoundError(_missing(source, path))
    return found


def _find_on_hub(name: Hub, rest: str) -> list[Path]:
    owner, _, rest = rest.partition("/")
    repository, _, wanted = rest.partition("/")
    repo = f"{owner}/{repository}"
    if wanted:
        folder = hub.fetch(repo, [wanted], hub=name, kind="dataset")
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
        matching = [path for path in sorted(names) if fnmatch.fnmatch(path, wanted)]
        if found := [folder / path for path in matching if (folder / path).is_file()]:
            return found
    there = [path for path in hub.list_files(repo, hub=name) if path.endswith(EXTENSIONS)]
    listing = ", ".join(f"{name}:{repo}/{path}" for path in there[:SHOWN_FILES])
    found_or_not = f"{wanted} matches no file of data set {repo}" if wanted else "FILE is missing"
    raise DataNotFoundError(
        f"data {name}:{repo}/{wanted}: {found_or_not}; expected {name}:OWNER/NAME/FILE.\n"
        f"Its data files: {listing or 'none in parquet, json or jsonl'}"
        f"{', ...' * (len(there) > SHOWN_FILES)}"
    )


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
    cure = "Correct the path."
    if name := re.search(PREPARED, str(path).lower()):
        folder = shlex.quote(str(path.parent))
        cure = (
            f"Correct the path, or write it with: rlcli data prepare {name[1]} --local_dir {folder}"
        )
    return f"data file {source} is not there{where}. {cure}"


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
        table = pyarrow.parquet.ParquetFile(path).read()
        rows = table.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = printable(str(error).partition("\n")[0])
        raise DataError(f"{path.name} is not a readable parquet file: {reason}") from error
    names = table.column_names
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"{path.name} has two columns {printable(twice, 60)!r}. Rename one.")
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
    except ValueError as error:
        raise DataError(f"{path.name}: not usable JSON: {error}.") from error
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
