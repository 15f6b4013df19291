"""Data files to rows: prompt, ground truth and data source of every line, or what is wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from rlcli.data.columns import FIELDS, MISSING, value_of
from rlcli.data.files import find_files, iter_records, kind_of, nearest, printable
from rlcli.data.layouts import TRANSCRIPT_COLUMNS
from rlcli.data.messages import check_text, read_prompt, refuse_media
from rlcli.data.templates import MAX_COLUMNS, MAX_VALUE, check_template, fill_template
from rlcli.errors import DataError
from rlcli.types import Message

JSON_COLUMNS = ("reward_model", "extra_info")
"""Columns that hold an object, or JSON text of one."""
SHOWN_ERRORS = 3
MAX_MESSAGE = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a data file. `id` is `file.jsonl:17`; `prompt` is text or chat messages.

    columns: all values of the line by column name.
    """

    id: str
    prompt: str | tuple[Message, ...]
    ground_truth: Any = None
    data_source: str = ""
    extra_info: Mapping[str, Any] = field(default_factory=dict[str, Any])
    columns: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Options for reading rows.

    fields: our field name to its column (`reward_model.ground_truth` is nested). template: the
    prompt, with columns in braces. drop_last_assistant: use a prompt's last assistant message as
    the reference answer and remove it; None: only if the column holds whole conversations or the
    message equals the ground truth. without: columns to ignore.
    """

    fields: Mapping[str, str] = field(default_factory=dict[str, str])
    template: str | None = None
    drop_last_assistant: bool | None = None
    without: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """Valid rows of some files, one message per invalid row, and remarks on how rows were read."""

    rows: list[Row]
    errors: list[str]
    notes: list[str]


class _Remarks:
    """Remarks on rows, each with the number of rows and the first of them."""

    def __init__(self) -> None:
        self._seen: dict[str, list[Any]] = {}

    def add(self, remark: str, row_id: str) -> None:
        self._seen.setdefault(remark, [0, row_id])[0] += 1

    def lines(self) -> list[str]:
        return [
            f"{remark} (rows: {count}, first: {first})"
            for remark, (count, first) in self._seen.items()
        ]


def read_rows(
    sources: Sequence[str], *, fields: Mapping[str, str] | None = None, base: Path | None = None
) -> list[Row]:
    """Rows of all files, in order; every row of every file is there.

    base: where relative paths start (none: working directory). ground_truth and data_source may
    be absent from a whole file (a judge needs neither), but not from single rows.

    Raises:
        DataError: a file or a row that cannot be used, with file, line, field and cure.
    """
    return read_scan(sources, Reading(fields=fields or {}), base=base).rows


def read_scan(sources: Sequence[str], reading: Reading, *, base: Path | None = None) -> Scan:
    """The rows of `read_rows` with remarks on how they were read. Raises: DataError."""
    scan = scan_rows(sources, reading, base=base)
    if scan.errors:
        more = len(scan.errors) - SHOWN_ERRORS
        lines = scan.errors[:SHOWN_ERRORS] + ([f"... and {more} more bad rows."] * (more > 0))
        raise DataError("\n".join(lines))
    return scan


def scan_rows(
    sources: Sequence[str], reading: Reading | None = None, *, base: Path | None = None
) -> Scan:
    """All valid rows, with a message for each invalid row instead of an exception.

    Raises:
        DataError: a file that is missing, empty or unreadable as a whole.
    """
    reading = reading or Reading()
    if not sources:
        raise DataError("no data file is given. Set data.train (--data FILE).")
    for name in reading.fields:
        if name not in FIELDS:
            raise DataError(
                f"data.fields.{name} is no field{nearest(name, list(FIELDS))}: "
                f"map one of {', '.join(FIELDS)} to a column."
            )
    paths = [path for source in sources for path in find_files(source, base=base)]
    remarks, rows, errors = _Remarks(), list[Row](), list[str]()
    for path, label in zip(paths, _labels(paths), strict=True):
        _scan_file(path, label, reading, into=(rows, errors, remarks))
    return Scan(rows=rows, errors=errors, notes=remarks.lines())


def _labels(paths: Sequence[Path]) -> list[str]:
    """A name for every file, used in row ids: as short as it can be while no two are equal."""
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        names = [f"{path.absolute().parent.name}/{path.name}" for path in paths]
    return [
        name if names.count(name) == 1 else f"{name}#{names[:index].count(name) + 1}"
        for index, name in enumerate(names)
    ]


def _scan_file(
    path: Path, label: str, reading: Reading, *, into: tuple[list[Row], list[str], _Remarks]
) -> None:
    rows, errors, remarks = into
    records = [(number, _prepared(record, reading)) for number, record in iter_records(path)]
    if reading.template is not None:
        check_template(
            reading.template, [record for _, record in records], reading.fields, label=label
        )
    present = {
        name
        for name in ("ground_truth", "data_source")
        if name in reading.fields
        or any(value_of(record, name, reading.fields)[0] is not MISSING for _, record in records)
    }
    for number, record in records:
        row_id = f"{label}:{number}"
        try:
            rows.append(_row(row_id, record, reading, present=present, remarks=remarks))
        except DataError as error:
            errors.append(printable(str(error), MAX_MESSAGE))
        except RecursionError:
            errors.append(f"{row_id}: nested too deeply. Repair the row.")


def _prepared(record: Any, reading: Reading) -> Any:
    """The columns to read, with JSON text in `JSON_COLUMNS` decoded."""
    if not isinstance(record, dict):
        return record
    read: dict[str, Any] = {}
    if reading.without:
        record = {key: value for key, value in record.items() if key not in reading.without}
    for name in JSON_COLUMNS:
        text = cast("dict[str, Any]", record).get(name)
        if isinstance(text, str) and text.strip()[:1] == "{":
            try:
                read[name] = json.loads(text)
            except (ValueError, RecursionError):
                continue
    return {**record, **read} if read else record


def _row(
    row_id: str, record: Any, reading: Reading, *, present: set[str], remarks: _Remarks
) -> Row:
    if isinstance(record, DataError):
        raise record
    if not isinstance(record, dict):
        raise DataError(f"{row_id}: found {kind_of(record)}, expected an object with a prompt.")
    record = cast("dict[str, Any]", record)
    mapping = reading.fields
    found = {name: value_of(record, name, mapping) for name in FIELDS}
    values = {name: value for name, (value, _) in found.items()}
    if reading.template is not None:
        values["prompt"] = fill_template(row_id, reading.template, record, mapping)
    for name in ("prompt", *sorted(present)):
        is_answer_inside = name == "ground_truth" and _may_drop(found["prompt"], reading)
        if values[name] is MISSING and not is_answer_inside:
            raise DataError(_missing_field(row_id, record, name=name, mapping=mapping))
    refuse_media(row_id, record)
    column = found["prompt"][1] or "prompt"
    prompt = read_prompt(row_id, values["prompt"], column=column)
    for name, value in values.items():
        if value is not MISSING:
            check_text(row_id, value, mapping.get(name, name))
    gold = None if values["ground_truth"] is MISSING else values["ground_truth"]
    is_json = isinstance(values["prompt"], str) and not isinstance(prompt, str)
    _remark(remarks, row_id, found, reading, is_json=is_json)
    if not isinstance(prompt, str) and prompt[-1]["role"] == "assistant":
        prompt, gold = _last_assistant(
            row_id, prompt, gold, column=column, drop=reading.drop_last_assistant, remarks=remarks
        )
    return Row(
        id=row_id,
        prompt=prompt,
        ground_truth=gold,
        data_source=_data_source(row_id, values["data_source"]),
        extra_info=_extra_info(row_id, values["extra_info"]),
        columns=record,
    )


def _remark(
    remarks: _Remarks,
    row_id: str,
    found: Mapping[str, tuple[Any, str]],
    reading: Reading,
    *,
    is_json: bool,
) -> None:
    """Add remarks on columns the user did not name, and on messages stored as JSON text."""
    prompt, gold = found["prompt"][1], found["ground_truth"][1]
    is_guessed = reading.template is None and prompt not in ("", "prompt")
    if is_guessed and "prompt" not in reading.fields:
        remarks.add(f"the prompt is read from column {prompt}", row_id)
    if gold not in ("", *FIELDS["ground_truth"]) and "ground_truth" not in reading.fields:
        remarks.add(f"ground_truth is read from column {gold}", row_id)
    if is_json:
        remarks.add("the prompt is JSON text of chat messages and is read as messages", row_id)


def _may_drop(found: tuple[Any, str], reading: Reading) -> bool:
    """Whether the prompt's last message may serve as the reference answer."""
    if reading.drop_last_assistant is not None:
        return reading.drop_last_assistant
    return found[1] in TRANSCRIPT_COLUMNS


def _last_assistant(
    row_id: str,
    prompt: tuple[Message, ...],
    gold: Any,
    *,
    column: str,
    drop: bool | None,
    remarks: _Remarks,
) -> tuple[tuple[Message, ...], Any]:
    """(messages, ground truth) of a prompt whose last message is the assistant's."""
    answer = prompt[-1]["content"]
    if drop is None:
        is_gold = isinstance(gold, str | int | float) and answer.strip() == str(gold).strip()
        drop = column.rpartition(".")[2] in TRANSCRIPT_COLUMNS or is_gold
    if not drop:
        remarks.add(
            "the prompt ends with an assistant message, and the response continues it; if it is "
            "the reference answer, set data.drop_last_assistant=true",
            row_id,
        )
        return prompt, gold
    remarks.add(
        "the last assistant message is taken out of the prompt as the reference answer; "
        "data.drop_last_assistant=false keeps it, to be continued",
        row_id,
    )
    return prompt[:-1], answer if gold is None else gold


def _missing_field(
    row_id: str, record: Mapping[str, Any], *, name: str, mapping: Mapping[str, str]
) -> str:
    columns = [printable(key, MAX_VALUE) for key in record]
    column = mapping.get(name, name)
    if column in record:
        return f"{row_id}: field '{column}' is null. Give it a value, or remove the row."
    if {"target", "nums"} <= record.keys() and name == "prompt":
        return (
            f"{row_id}: field '{column}' is missing; these are raw countdown rows. Add "
            "--reward FILE:FUNCTION data.fields.ground_truth=target data.prompt_template="
            "'Using the numbers {nums}, create an equation that equals {target}.'"
        )
    shown = sorted(columns)[:MAX_COLUMNS] + ["..."] * (len(columns) > MAX_COLUMNS)
    cure = f"Add it, or name the column: data.fields.{name}=COLUMN"
    if name == "prompt":
        cure += ", or write it from several columns: data.prompt_template=TEXT"
    return (
        f"{row_id}: field '{column}' is missing; the row has {', '.join(shown) or 'no fields'}"
        f"{nearest(column, columns)}. {cure}."
    )


def _data_source(row_id: str, data_source: Any) -> str:
    if data_source is MISSING:
        return ""
    if not isinstance(data_source, str) or not data_source.strip():
        raise DataError(
            f"{row_id}: field 'data_source' is {printable(repr(data_source), MAX_VALUE)}, "
            "expected a name such as gsm8k."
        )
    return data_source


def _extra_info(row_id: str, extra_info: Any) -> Mapping[str, Any]:
    if extra_info is MISSING:
        return {}
    if not isinstance(extra_info, dict):
        raise DataError(
            f"{row_id}: field 'extra_info' is {kind_of(extra_info)}, expected an object."
        )
    return extra_info
