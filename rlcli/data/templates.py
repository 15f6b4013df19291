"""data.prompt_template: builds a prompt from several columns."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from rlcli.data.columns import FIELDS, MISSING, column_value, value_of
from rlcli.data.files import nearest, printable
from rlcli.errors import DataError

MAX_COLUMNS, MAX_VALUE = 12, 40
_PLACE = re.compile(r"\{\{([^\W\d][\w .-]*)\}\}|\{([^\W\d][\w .-]*)\}")


def _template_value(record: Mapping[str, Any], name: str, mapping: Mapping[str, str]) -> Any:
    value = column_value(record, name)
    return value_of(record, name, mapping)[0] if value is MISSING and name in FIELDS else value


def check_template(
    template: str, records: Sequence[Any], mapping: Mapping[str, str], *, label: str
) -> None:
    """Raises: DataError if the template names a column that no row of the file has."""
    rows = [cast("dict[str, Any]", record) for record in records if isinstance(record, dict)]
    for match in _PLACE.finditer(template):
        name = match[2]
        if name is None or not rows:
            continue
        if all(_template_value(row, name, mapping) is MISSING for row in rows):
            columns = list(dict.fromkeys(str(key) for row in rows for key in row))
            shown = ", ".join(printable(key, MAX_VALUE) for key in columns[:MAX_COLUMNS])
            raise DataError(
                f"data.prompt_template has {{{name}}}, but {label} has no column {name!r}"
                f"{nearest(name, columns)}. Its columns: {shown}. Write {{{{{name}}}}} for the "
                "word in braces."
            )


def fill_template(
    row_id: str, template: str, record: Mapping[str, Any], mapping: Mapping[str, str]
) -> str:
    """The template with this row's values; braces inside a value are not expanded."""

    def filled(match: re.Match[str]) -> str:
        name = match[2]
        if name is None:
            return f"{{{match[1]}}}"
        value = _template_value(record, name, mapping)
        if value is MISSING or value is None:
            raise DataError(
                f"{row_id}: field '{name}' has no value, and data.prompt_template uses it. Give "
                "it one, or remove the row."
            )
        if _is_messages(value):
            raise DataError(
                f"{row_id}: field '{name}' holds chat messages, and data.prompt_template needs "
                "text. Use data.system_prompt to add instructions to messages."
            )
        is_text = isinstance(value, str)
        return value if is_text else json.dumps(value, ensure_ascii=False, default=str)

    return _PLACE.sub(filled, template)


def _is_messages(value: Any) -> bool:
    first = cast("list[Any]", value)[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and bool({"content", "value"} & cast("Any", first).keys())
