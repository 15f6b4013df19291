"""Checks and splits of a whole set of rows: repeated prompts, held-out rows, overlap."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from rlcli.config.schema import HELD_OUT
from rlcli.data.files import printable
from rlcli.data.readers import Row
from rlcli.errors import DataError

MIN_ROWS = 200
"""Smallest data set from which rows are held out for evaluation."""
MAX_HELD_OUT = 200
HELD_OUT_PERCENT = 5
MAX_SHOWN = 40
Key = Callable[[Row], Hashable]
"""Equal for rows of one task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The rows to train on and those held out for evaluation."""

    train: list[Row]
    held_out: list[Row]


def is_held_out(val: Sequence[str]) -> bool:
    """Whether `data.val` asks for rows held out from data.train.

    Raises: DataError if it names files too.
    """
    if HELD_OUT in val and len(val) > 1:
        raise DataError(f"data.val has {HELD_OUT} beside other data. Keep one of them.")
    return HELD_OUT in val


def num_held_out(num_rows: int, num_prompts: int | None = None) -> int:
    """Number of prompts to hold out: 5 % of the distinct ones up to 200, or 0 below 200 rows."""
    if num_rows < MIN_ROWS:
        return 0
    distinct = num_rows if num_prompts is None else num_prompts
    return min(MAX_HELD_OUT, distinct * HELD_OUT_PERCENT // 100)


def hold_out(rows: Sequence[Row], *, key: Key | None = None) -> Split:
    """Split rows by a hash of their prompts: the same data gives the same split everywhere.

    All rows of a prompt are on one side. Of a held-out prompt the first row is evaluated.
    key: equal for rows of one task; by default their prompts.
    """
    keys = [(key or prompt_key)(row) for row in rows]
    digests = {key: hashlib.sha256(repr(key).encode()).digest() for key in keys}
    number = num_held_out(len(rows), len(digests))
    chosen = set(sorted(digests, key=digests.__getitem__)[:number])
    first: dict[Hashable, Row] = {}
    for own, row in zip(keys, rows, strict=True):
        if own in chosen:
            first.setdefault(own, row)
    train = [row for own, row in zip(keys, rows, strict=True) if own not in chosen]
    return Split(train=train, held_out=list(first.values()))


def repeat_notes(rows: Sequence[Row], *, key: Key | None = None) -> list[str]:
    """Remarks on repeated rows and on prompts with more than one reference answer.

    key: as for `hold_out`.
    """
    first: dict[Hashable, dict[str, Row]] = {}
    equal: list[tuple[Row, Row]] = []
    conflicts: dict[Hashable, tuple[Row, Row]] = {}
    for row in rows:
        own = (key or prompt_key)(row)
        seen = first.setdefault(own, {})
        gold = json.dumps(row.ground_truth, sort_keys=True, ensure_ascii=False, default=str)
        if gold in seen:
            equal.append((seen[gold], row))
        else:
            if seen:
                conflicts.setdefault(own, (next(iter(seen.values())), row))
            seen[gold] = row
    notes: list[str] = []
    if equal:
        one, other = equal[0]
        notes.append(
            f"{len(equal)} of {len(rows)} rows repeat an earlier row "
            f"(first: {other.id} is equal to {one.id})"
        )
    if conflicts:
        one, other = next(iter(conflicts.values()))
        notes.append(
            f"{len(conflicts)} of {len(first)} prompts have different reference answers (first: "
            f"{one.id} has {_gold(one)}, {other.id} has {_gold(other)})"
        )
    return notes


def overlap_notes(train: Sequence[Row], val: Sequence[Row], *, key: Key | None = None) -> list[str]:
    """A remark on validation prompts that are also in the training data. key: as for `hold_out`."""
    key = key or prompt_key
    places: dict[Hashable, Row] = {}
    for row in train:
        places.setdefault(key(row), row)
    both = [(row, places[own]) for row in val if (own := key(row)) in places]
    if not both:
        return []
    held, trained = both[0]
    return [
        f"{len(both)} of {len(val)} validation prompts are also in the training data (first: "
        f"{held.id} is {trained.id}): the score on them is not a held-out one"
    ]


def prompt_key(row: Row) -> Hashable:
    """Equal for rows with the same prompt, as text or as one user message."""
    if isinstance(row.prompt, str):
        return (("user", row.prompt.strip()),)
    return tuple((message["role"], message["content"].strip()) for message in row.prompt)


def row_key(row: Row) -> Hashable:
    """Equal for rows with the same prompt, reference answer and columns."""
    told = [row.ground_truth, row.data_source, row.columns, row.extra_info]
    return (prompt_key(row), json.dumps(told, sort_keys=True, ensure_ascii=False, default=str))


def name_of(sources: Sequence[str]) -> str:
    """A short name for data sources: `test.parquet`, `a.jsonl and 2 more`."""
    name = PurePath(sources[0]).name if sources else "no data"
    name = name.removeprefix("builtin:")
    return printable(name, MAX_SHOWN) + (f" and {len(sources) - 1} more" * (len(sources) > 1))


def val_name(train: Sequence[str], val: Sequence[str]) -> str:
    """A short name for the validation data: of data.val, or `5 % of train.parquet`."""
    if HELD_OUT in val:
        return f"{HELD_OUT_PERCENT} % of {name_of(train)}"
    return name_of(val)


def _gold(row: Row) -> str:
    return repr(printable(row.ground_truth, MAX_SHOWN))
