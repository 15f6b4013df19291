"""Reads our fields from the columns of a data row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from rlcli.data.layouts import find_layout, other_gold

FIELDS: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt",),
    "ground_truth": ("ground_truth", "reward_model.ground_truth"),
    "data_source": ("data_source",),
    "extra_info": ("extra_info",),
}
"""Columns tried for each of our fields, in this order, unless `data.fields` names one."""
MISSING = object()


def value_of(record: Any, name: str, mapping: Mapping[str, str]) -> tuple[Any, str]:
    """(value, column) of one of our fields; (MISSING, "") if the row has none."""
    columns = (mapping[name],) if name in mapping else FIELDS[name]
    for column in columns:
        value = column_value(record, column)
        if value is not MISSING and value is not None:
            return value, column
    if isinstance(record, dict) and name not in mapping and name in ("prompt", "ground_truth"):
        return _layout_value(cast("dict[str, Any]", record), name)
    return MISSING, ""


def _layout_value(record: Mapping[str, Any], name: str) -> tuple[Any, str]:
    """(value, column) of prompt or ground truth in a row of a public data set; see `value_of`."""
    has_prompt = record.get("prompt") is not None
    layout = None if has_prompt else find_layout(record)
    if name == "prompt":
        return (MISSING, "") if layout is None else (layout.prompt(record), layout.column)
    column = other_gold(record) if layout is None else layout.gold_column(record)
    if column is None:
        return MISSING, ""
    return (record[column] if layout is None else layout.ground_truth(record)), column


def column_value(record: Any, column: str) -> Any:
    """The value of a column, or MISSING. `a.b` is the entry b of the object in column a."""
    if not isinstance(record, dict):
        return MISSING
    if column in record:
        return record[column]
    head, dot, rest = column.partition(".")
    return column_value(record.get(head), rest) if dot else MISSING
