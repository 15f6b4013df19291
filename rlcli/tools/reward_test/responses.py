"""Read responses from a file, with the row each answers and human labels."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlcli.data.columns import FIELDS, MISSING, column_value
from rlcli.data.files import find_files, iter_records, nearest, printable
from rlcli.data.readers import Reading, Row, read_scan
from rlcli.errors import DataError
from rlcli.tools.reward_test.labels import read_label
from rlcli.tools.reward_test.rows import Case

RESPONSES = ("response", "solution_str", "completion", "output", "generated_text", "answer")
"""Columns with responses; the first one present is read."""
IDS = ("id", "prompt_id")
"""Columns with the id of the row that is answered."""
SHOWN = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """Responses, and a line on where their rows are from."""

    cases: list[Case]
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """One line of the file."""

    name: str
    columns: Mapping[str, Any]
    response: str


def read_responses(
    source: str,
    read_data: Callable[[], Sequence[Row]] | None,
    *,
    fields: Mapping[str, str],
    label: str | None = None,
    limit: int | None = None,
    data: Sequence[str] = (),
) -> Given:
    """The responses of a file with the rows they answer.

    A row of the data is found by the response's id, or by its place where there are no ids; rows
    that hold a prompt of their own need no data. read_data: None where no data is given.
    data: its names, for messages. label: the column with what people say.

    Raises: DataError.
    """
    records = _read_records(source, fields)
    labels = _labels(source, records, label) if label else [None] * len(records)
    rows, note = _find_rows(source, records, read_data, fields=fields, data=data)
    cases = [
        Case(row=row, response=record.response, kind="given", label=said)
        for row, record, said in zip(rows, records, labels, strict=True)
    ]
    return Given(cases=cases[:limit], note=note)


def _read_records(source: str, fields: Mapping[str, str]) -> list[_Record]:
    records: list[tuple[str, Mapping[str, Any]]] = []
    for path in find_files(source):
        for number, record in iter_records(path):
            if isinstance(record, DataError):
                raise record
            if not isinstance(record, dict):
                raise DataError(f"{path.name}:{number}: expected an object with a response.")
            records.append((f"{path.name}:{number}", record))
    column = _response_column(source, [record for _, record in records], fields)
    return [
        _Record(name=name, columns=record, response=_response(name, record.get(column), column))
        for name, record in records
    ]


def _response_column(
    source: str, records: Sequence[Mapping[str, Any]], fields: Mapping[str, str]
) -> str:
    """Raises: DataError where no column can be it."""
    taken = set(fields.values())
    for column in RESPONSES:
        if column not in taken and any(record.get(column) is not None for record in records):
            return column
    columns = _columns(records)
    raise DataError(
        f"--responses {source} has no response{nearest(RESPONSES[0], columns)}; its columns: "
        f"{_shown(columns)}.\nCall the column response (or {', '.join(RESPONSES[1:])})."
    )


def _response(name: str, value: Any, column: str) -> str:
    """A response that is text, or chat messages that end with it."""
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1].get("content")
    if isinstance(value, str):
        return value
    found = "missing" if value is None else printable(repr(value), 40)
    raise DataError(f"{name}: field '{column}' is {found}, expected the text of a response.")


def _labels(source: str, records: Sequence[_Record], label: str) -> list[float | None]:
    """Raises: DataError where the column is not there, or holds what is no label."""
    values = [column_value(record.columns, label) for record in records]
    if all(value is MISSING for value in values):
        columns = _columns([record.columns for record in records])
        raise DataError(
            f"--label {label}: --responses {source} has no such column"
            f"{nearest(label, columns)}; it has {_shown(columns)}."
        )
    if all(value is MISSING or value is None for value in values):
        raise DataError(
            f"--label {label}: the column is empty in every row of --responses {source}.\n"
            "Fill it in, or name another one."
        )
    return [
        None if value is MISSING or value is None else read_label(value, f"{record.name}: {label}")
        for record, value in zip(records, values, strict=True)
    ]


def _columns(records: Sequence[Mapping[str, Any]]) -> list[str]:
    return [printable(name, 40) for name in dict.fromkeys(k for record in records for k in record)]


def _shown(columns: Sequence[str]) -> str:
    return ", ".join([*columns[:SHOWN], *["..."] * (len(columns) > SHOWN)]) or "none"


def _find_rows(
    source: str,
    records: Sequence[_Record],
    read_data: Callable[[], Sequence[Row]] | None,
    *,
    fields: Mapping[str, str],
    data: Sequence[str],
) -> tuple[list[Row], str]:
    """(the row of each response, where it is from). Raises: DataError."""
    names = ", ".join(data)
    prompt = fields.get("prompt", FIELDS["prompt"][0])
    column = _response_column(source, [record.columns for record in records], fields)
    own = Reading(fields=fields, without=(column,))
    has_prompts = all(column_value(record.columns, prompt) is not MISSING for record in records)
    if read_data is None:
        if not has_prompts:
            raise DataError(
                f"--responses {source}: no column {prompt}, and no data that they answer.\n"
                "Add --data FILE, or the prompt to every row (data.fields.prompt=COLUMN names it)."
            )
        return read_scan([source], own).rows, f"{len(records)} rows of {source}."
    rows = read_data()
    by_id = _rows_by_id(rows, data)
    found = [_row_of(record, by_id) for record in records]
    matched = [row for row in found if row is not None]
    if len(matched) == len(records):
        return matched, f"{len(records)} responses joined to {names} by id."
    if matched:
        lost = next(record.name for record, row in zip(records, found, strict=True) if row is None)
        raise DataError(
            f"--responses {source}: {len(records) - len(matched)} of {len(records)} ids are not in "
            f"{names}; the first is of {lost}.\nGive the data they answer: --data FILE."
        )
    if has_prompts:
        note = f"{len(records)} rows of {source}, with prompts of their own: {names} is not read."
        return read_scan([source], own).rows, note
    if len(rows) != len(records):
        raise DataError(
            f"--responses {source} has {len(records)} rows, {names} has {len(rows)}, and no ids "
            "say which answers which.\nGive one response per row, in its order, or the row's id "
            f"in a column {IDS[0]}, such as {rows[0].id}."
        )
    return [*rows], f"{len(records)} responses joined to {names} by position."


def _rows_by_id(rows: Sequence[Row], data: Sequence[str]) -> dict[str, Row]:
    """Rows by our id, file.jsonl:17, and by the file's own where no two are equal."""
    found = {row.id: row for row in rows}
    records = [
        record for name in data for path in find_files(name) for record in iter_records(path)
    ]
    own = [record.get(IDS[0]) for _, record in records if isinstance(record, dict)]
    if len(own) == len(rows) == len({str(name) for name in own if name is not None}):
        found |= {str(name): row for name, row in zip(own, rows, strict=True)}
    return found


def _row_of(record: _Record, by_id: Mapping[str, Row]) -> Row | None:
    for column in IDS:
        if (found := by_id.get(str(record.columns.get(column)))) is not None:
            return found
    return None


def run_of(source: str) -> Path | None:
    """The run that a file of rollouts lies in; None for any other file."""
    path = Path(os.path.expanduser(os.path.expandvars(source))).absolute()
    run = path.parent.parent
    return run if path.parent.name == "rollouts" and (run / "config.json").is_file() else None
