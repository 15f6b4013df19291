"""From what a judge wrote to a score; and answers that need no judge."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, cast

_THOUGHT = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_OPENED = re.compile(r"<think(?:ing)?>", re.IGNORECASE)
_CLOSED = re.compile(r"</think(?:ing)?>", re.IGNORECASE)
_OBJECT = re.compile(r"\{\s*\"")
_JSON_HEAD = re.compile(r"\A.*?\{\s*\"reason\"\s*:\s*\"", re.DOTALL)
_CODE_FENCE = re.compile(r"^```[a-zA-Z]*\s*\n(.*?)\n?\s*```$", re.DOTALL)
_NUMBER = r"(?P<number>[-+]?\d+(?:\.\d+)?)(?:\s*/\s*(?P<whole>\d+))?"
# A number that goes on (8.5.1, 8-9, 8 or 9, 80%) is not a score.
_END = r"(?![\w.]*\d|\s*[-~%\u2013]|\s*(?:or\b|to\b|[\u6216\u5230]))"
_LINE = re.compile(
    rf"(?:score|rating|\u8bc4\u5206|\u5f97\u5206|\u5206\u6570)\W{{0,4}}[:\uff1a=]\W{{0,4}}?{_NUMBER}{_END}",
    re.IGNORECASE,
)
_BARE = re.compile(rf"\W{{0,4}}?{_NUMBER}\s*\u5206?\W{{0,4}}")
_DECORATION = frozenset("`$^~|")
OPENERS = frozenset(
    {
        "solution",
        "answer",
        "the answer is",
        "final answer",
        "thought process",
        "let's solve this problem step by step",
        "let's think step by step",
        "let me think",
        "\u89e3",
        "\u89e3\u7b54",
        "\u7b54",
        "\u7b54\u6848",
        "\u7b54\u6848\u662f",
        "\u89e3\u6790",
        "\u601d\u8003\u8fc7\u7a0b",
        "\u8ba9\u6211\u4eec\u4e00\u6b65\u4e00\u6b65\u601d\u8003",
        "\u304b\u3044\u305b\u3064",
        "respuesta",
    }
)
"""Beginnings of an answer that judges reward without one (arXiv 2507.08794)."""
_LONGEST_OPENER = max(map(len, OPENERS))


def read_score(text: str, scale: tuple[int, int]) -> float | None:
    """The score of a reply, None when it gives none in `scale` beyond doubt."""
    return read_verdict(text, scale)[0]


def read_verdict(text: str, scale: tuple[int, int]) -> tuple[float | None, str | None]:
    """(score, reason): the score as by `read_score`, and why in the words of the reply.

    The reason is the JSON's, else what stands before the score, else what follows it.
    """
    final = _without_thought(text)
    # As it stands first: a reason may quote a thought's tags.
    for form in (text, final):
        try:
            value = _JSON.decode(_unfenced(form))
        except (ValueError, RecursionError):
            continue
        return _from_json(value, scale)
    return _from_text(final, scale)


def is_degenerate(response: str) -> bool:
    """Whether a response says nothing: empty, only punctuation, or only an answer's opening."""
    final = _CLOSED.split(_THOUGHT.sub("", response))[-1]
    # Far enough to tell: over all of a long response it takes milliseconds of the event loop.
    said = (c for c in final if not c.isspace() and not _is_filler(c))
    if len([*islice(said, _LONGEST_OPENER + 1)]) > _LONGEST_OPENER:
        return False
    words = "".join(c for c in final if not _is_filler(c) or c == "'").strip()
    if not words.strip("' "):
        return True
    return " ".join(words.casefold().replace("\u2019", "'").split()) in OPENERS


def _is_filler(character: str) -> bool:
    """Punctuation and invisible characters; a space holds words apart, so it is none."""
    if character == "\u2019":
        return False
    category = unicodedata.category(character)
    is_space = character.isspace()
    return not is_space and (category[0] in "PCZ" or character in _DECORATION)


def _without_thought(text: str) -> str:
    """The text without what was thought: also where only one of the two tags was written."""
    text = _THOUGHT.sub("", text)
    return _OPENED.split(_CLOSED.split(text)[-1])[0].strip()


def _unfenced(text: str) -> str:
    fenced = _CODE_FENCE.match(text.strip())
    return fenced[1].strip() if fenced else text.strip()


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; without a score where a key repeats: of two nobody knows which is meant."""
    found = dict(pairs)
    return found if len(found) == len(pairs) else {**found, "score": None}


_JSON = json.JSONDecoder(object_pairs_hook=_without_repeats, strict=False)


def _from_json(value: Any, scale: tuple[int, int]) -> tuple[float | None, str | None]:
    if not isinstance(value, dict):
        return _number(value, scale), None
    fields = cast("dict[str, Any]", value)
    reason = fields.get("reason")
    said = reason.strip() if isinstance(reason, str) else ""
    return _number(fields.get("score"), scale), said or None


def _from_text(text: str, scale: tuple[int, int]) -> tuple[float | None, str | None]:
    """The last score in the text: of an object in it, or after a word for it."""
    bare = _BARE.fullmatch(text)
    if bare:
        return _in_range(bare, scale), None
    objects = [(start, end, value) for start, end, value in _objects(text) if "score" in value]
    found = [(start, *_from_json(value, scale)) for start, _, value in objects]
    for match in _LINE.finditer(text):
        if not any(start <= match.start() < end for start, end, _ in objects):
            said = _plain(text[: match.start()]) or _plain(text[match.end() :])
            found.append((match.start(), _in_range(match, scale), said or None))
    scored = [(at, score, reason) for at, score, reason in found if score is not None]
    if not scored:
        return None, None
    _, score, reason = max(scored, key=lambda one: one[0])
    return score, reason


def _objects(text: str) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(start, end, value) of each JSON object, those inside others not again."""
    end = 0
    for match in _OBJECT.finditer(text):
        if match.start() < end:
            continue
        with suppress(ValueError, RecursionError):
            value, end = _JSON.raw_decode(text, match.start())
            yield match.start(), end, value


def _plain(text: str) -> str:
    """Without marks at the ends, and without those of JSON that could not be read as such."""
    return _JSON_HEAD.sub("", text).strip(' \t\r\n*#_`{},"')


def _number(value: Any, scale: tuple[int, int]) -> float | None:
    if isinstance(value, str):
        match = _BARE.fullmatch(value.strip())
        return _in_range(match, scale) if match else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    number = float(value) if abs(value) < 1e9 else math.inf
    return number if scale[0] <= number <= scale[1] else None


def _in_range(match: re.Match[str], scale: tuple[int, int]) -> float | None:
    if match["whole"] is not None and int(match["whole"]) != scale[1]:
        return None
    return _number(float(match["number"]), scale)
