"""Converts the prompt column of a data row, in any of its formats, to text or chat messages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from rlcli.data.files import kind_of, nearest, printable
from rlcli.errors import DataError
from rlcli.types import Message

ROLES = ("system", "user", "assistant", "tool")
ROLE_ALIASES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "developer": "system",
    "observation": "tool",
    "function": "tool",
    "ipython": "tool",
}
"""Role names of other tools, in lower case, to ours."""
MEDIA_COLUMNS = (
    *("image", "images", "video", "videos", "audio", "audios"),
    *("image_path", "image_url", "multi_modal_data", "multi_modal_inputs"),
)
TRAINING_MARKS = ("loss", "weight", "train", "trainable")
"""Message keys with which other tools select tokens for supervised training."""
MAX_SHOWN = 40


def read_prompt(row_id: str, value: Any, *, column: str) -> str | tuple[Message, ...]:
    """The prompt as text or chat messages.

    Messages may be a list, a single message, or JSON text of either, and have keys role and
    content or from and value.

    Raises: DataError with row, field and cure.
    """
    if isinstance(value, str):
        value = _from_json(value)
    if isinstance(value, str):
        return check_filled(row_id, value, column)
    if isinstance(value, dict):
        inside = cast("dict[str, Any]", value).get("messages")
        value = inside if isinstance(inside, list) else [value]
        if not _is_message(value[0] if value else None):
            raise _no_prompt(row_id, column, "an object")
    if not isinstance(value, list):
        raise _no_prompt(row_id, column, kind_of(value))
    if not value:
        raise DataError(f"{row_id}: field '{column}' is an empty list of messages.")
    messages = tuple(
        _message(row_id, message, where=f"{column}[{index}]")
        for index, message in enumerate(cast("list[Any]", value))
    )
    if not any(message["role"] in ("user", "tool") for message in messages):
        raise DataError(
            f"{row_id}: field '{column}' has no user message. Add one, or remove the row."
        )
    return messages


def refuse_media(row_id: str, record: Mapping[str, Any]) -> None:
    """Raises: DataError if a column with images, video or audio is not empty."""
    for column in MEDIA_COLUMNS:
        if _holds_something(record.get(column)):
            raise DataError(
                f"{row_id}: column '{column}' is not empty, and rlcli trains on text only. Remove "
                "the rows with images, video or audio, or empty the column."
            )


def check_filled(row_id: str, text: str, column: str) -> str:
    """Return `text`. Raises: DataError if it is blank or not valid Unicode."""
    if not text.strip():
        raise DataError(f"{row_id}: field '{column}' is empty. Fill it in, or remove the row.")
    check_text(row_id, text, column)
    return text


def check_text(row_id: str, value: Any, column: str) -> None:
    """Raises: DataError if any text in `value`, at any depth, cannot be encoded as UTF-8."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{row_id}: field '{column}' has half of a surrogate pair at character "
            f"{error.start}, which is no text. Repair the row."
        ) from error


def _no_prompt(row_id: str, column: str, found: str) -> DataError:
    return DataError(
        f"{row_id}: field '{column}' is {found}, expected text or a list of "
        'chat messages: [{"role": "user", "content": ...}].'
    )


def _holds_something(value: Any) -> bool:
    """Whether `value` is anything but null, blank, empty, zero, or a list or dict of these."""
    if isinstance(value, dict):
        return any(_holds_something(each) for each in cast("dict[str, Any]", value).values())
    if isinstance(value, list):
        return any(_holds_something(each) for each in cast("list[Any]", value))
    return bool(value.strip()) if isinstance(value, str) else value not in (None, False, 0, b"")


def _is_message(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    keys = {str(key).lower() for key in cast("dict[str, Any]", value)}
    return {"role", "content"} <= keys or {"from", "value"} <= keys


def _from_json(text: str) -> Any:
    """The messages in JSON text; any other text unchanged."""
    bare = text.strip()
    if not (bare.startswith(("[{", "{", "[ ", "[\n")) and bare.endswith(("}", "]"))):
        return text
    try:
        value = json.loads(bare)
    except (ValueError, RecursionError):
        return text
    if isinstance(value, dict):
        value = value.get("messages", value)
        value = value if isinstance(value, list) else [value]
    return value if value and all(map(_is_message, cast("list[Any]", value))) else text


def _message(row_id: str, given: Any, *, where: str) -> Message:
    if not isinstance(given, dict):
        raise DataError(
            f"{row_id}: field '{where}' is {kind_of(given)}, expected a message "
            "with role and content."
        )
    message = cast("dict[str, Any]", given)
    is_pair = "role" not in message and {"from", "value"} <= message.keys()
    role_key, content_key = ("from", "value") if is_pair else ("role", "content")
    role = _role(row_id, message.get(role_key), where=f"{where}.{role_key}")
    if _holds_something(message.get("tool_calls")) or _holds_something(
        message.get("function_call")
    ):
        raise DataError(
            f"{row_id}: field '{where}' has tool calls, which are not supported. Remove the row, "
            "or write the call into the content."
        )
    refuse_media(f"{row_id}: {where}", message)
    content = _content(row_id, message.get(content_key), where=f"{where}.{content_key}")
    if role == "user":
        check_filled(row_id, content, f"{where}.{content_key}")
    more = {
        key: value
        for key, value in message.items()
        if value is not None
        and key not in (role_key, content_key, *TRAINING_MARKS)
        and (isinstance(value, str) or _holds_something(value))
    }
    odd = [key for key, value in more.items() if not isinstance(value, str)]
    if odd:
        raise DataError(f"{row_id}: field '{where}.{odd[0]}' is not text: not supported.")
    return {"role": role, "content": content, **more}


def _role(row_id: str, role: Any, *, where: str) -> str:
    name = role.strip().lower() if isinstance(role, str) else role
    name = ROLE_ALIASES.get(name, name) if isinstance(name, str) else name
    if name not in ROLES:
        shown = printable(role, MAX_SHOWN)
        raise DataError(
            f"{row_id}: field '{where}' is {shown!r}{nearest(shown, list(ROLES))}, "
            f"expected one of {', '.join(ROLES)}."
        )
    return str(name)


def _content(row_id: str, content: Any, *, where: str) -> str:
    """Text of a message; text parts are concatenated, as chat templates do."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(
            _part(row_id, part, where=f"{where}[{index}]")
            for index, part in enumerate(cast("list[Any]", content))
        )
    raise DataError(f"{row_id}: field '{where}' is {kind_of(content)}, expected text.")


def _part(row_id: str, part: Any, *, where: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict):
        fields = cast("dict[str, Any]", part)
        text, kind = fields.get("text"), fields.get("type", "text")
        others = {key: value for key, value in fields.items() if key not in ("type", "text")}
        if isinstance(text, str) and kind == "text" and not _has_media(others):
            return text
        if kind != "text" or _has_media(others):
            shown = printable(kind, MAX_SHOWN)
            raise DataError(
                f"{row_id}: field '{where}' is a part of type {shown!r}, and rlcli trains on text "
                "only. Remove the rows with images, video or audio."
            )
    raise DataError(f"{row_id}: field '{where}' is {kind_of(part)}, expected a text part.")


def _has_media(fields: Mapping[str, Any]) -> bool:
    return any(
        _holds_something(value)
        for key, value in fields.items()
        if key.startswith(("image", "video", "audio", "input_image", "input_audio"))
    )
