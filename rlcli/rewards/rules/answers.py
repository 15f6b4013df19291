"""The final answer that a response states, and numbers in all the ways models write them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

from rlcli.boxed import boxes, final_boxes

MAX_STATEMENT = 2000
"""Characters read behind "the answer is"."""
MAX_MARKS = 32
"""Statements looked at, from the last on: a response that only repeats itself costs no more."""


class Number(NamedTuple):
    """A number, and whether a percent sign stood behind it (the value is before dividing)."""

    value: Fraction
    is_percent: bool


_TYPOGRAPHY: dict[int, str] = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
_TYPOGRAPHY |= dict.fromkeys([0x2010, 0x2011, 0x2012, 0x2013, 0x2212, 0xFE63], "-")
_TYPOGRAPHY |= dict.fromkeys([0xA0, 0x2007, 0x2009, 0x202F, 0x3000], " ")
_TYPOGRAPHY |= {0xFFE5: "¥", 0xFFE1: "£"}
_GROUP_SPACE = re.compile("(?<=[0-9])[\u00a0\u2007\u2009\u202f](?=[0-9]{3}(?![0-9]))")
_BOLD = re.compile(r"(?<!\w)\*\*|\*\*(?!\w)|`")
_LATEX = [
    (re.compile(r"(?<=\d)(?:,?\\!|\\[,;: ])\s*(?=\d{3}(?!\d))"), ""),
    (re.compile(r"\{,\}(?=\d)"), ","),
    (re.compile(r"\\(?:(?:left|right|displaystyle|quad)(?![a-zA-Z])|[,;:!\s])"), " "),
    (re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\\[dt]?frac\s*\{(-?\d+)\}\s*\{(\d+)\}"), r"\1/\2"),
    (re.compile(r"\\[dt]?frac\s*(\d)\s*(\d)"), r"\1/\2"),
    (re.compile(r"\\times(?![a-zA-Z])"), "×"),
    (re.compile(r"\\(?=[$%#&])"), ""),
]
_CURRENCY = "$€£¥₹₩₽"
_NUMBER = re.compile(
    rf"(?:(?<![A-Za-z0-9_)\].])(?P<sign>[-+])(?=[{_CURRENCY}\d.]))?"
    rf"(?:[{_CURRENCY}]\s?(?P<inner>-)?)?(?<![A-Za-z0-9_.])"
    r"(?P<body>\d{1,3}(?:,\d{2,3})*,\d{3}(?:\.\d+)?(?![\d,]*\d)|\d+(?:\.\d+)?|\.\d+)"
    r"(?:\s?/\s?(?P<below>\d+)(?![\d.]))?(?P<percent>\s?(?:%|percent\b|per cent\b))?"
)
_UNIT = re.compile(r"\s*(?:[a-zA-Z\u4e00-\u9fff°]+\s*){0,3}")
_OTHER_NUMBER = re.compile(
    r"\s*(?:(?:[A-Za-z]+\s+){0,2}(?:or|或者?)|and|,|;|/|\||和|、)\s*[-+$]?\d", re.IGNORECASE
)
_STRONG = re.compile(
    r"####\s*(?:(?:final\s+)?answer\s*(?:is\b|:)?\s*)?(?=[^\w\n]{0,3}\d)([^\n]*)"
    r"|<answer>(.{0,500}?)</answer>",
    re.IGNORECASE | re.DOTALL,
)
_STATED = re.compile(
    r"\banswers?\b(?:\s+to\s[^.\n:=]{1,80}?)?[\s*]*(?:is|are|was|would be|will be|equals|=|:)+\s*:?"
    r"|^[^\w\n]*(?:final\s+)?answer[^\w\n]*$"
    r"|(?:答案|结果|得数|^[ \t]*答)\s*(?:应该|应当|就|便)?\s*(?:是|为|等于|:|=)+",
    re.IGNORECASE | re.MULTILINE,
)
_SENTENCE_END = re.compile(r"(?<!\\)(?:[.!?](?=\s|$)|[。!?;])|\n")
_EQUATION = re.compile(rf"\s*(?:(?:[\d\s+\-*/×÷().,{_CURRENCY}]|[a-zA-Z](?![a-zA-Z]))+=)+")


def after_thinking(text: str) -> str:
    """What follows the last `</think>`; the whole text where there is none."""
    return text.rpartition("</think>")[2]


def fold(text: str) -> str:
    """The text with one kind of minus, digit, colon and space, and without bold marks."""
    return _BOLD.sub("", _GROUP_SPACE.sub("", text).translate(_TYPOGRAPHY))


def plain(text: str) -> str:
    """The folded text without the LaTeX that surrounds numbers."""
    text = fold(text)
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    return text


def parse_number(text: str, *, with_unit: bool = False) -> Number | None:
    """The number that this text is; None when it is anything else (or has a unit, unasked)."""
    text = plain(text).strip().rstrip(".。").rstrip("$")
    text = text[1:] if text.startswith("$") else text
    match = _NUMBER.match(text.strip())
    if match is None:
        return None
    unit = _UNIT.match(text.strip(), match.end()) if with_unit else None
    end = unit.end() if unit else match.end()
    return _number(match) if end == len(text.strip()) else None


def final_number(response: str) -> Number | None:
    """The number that a response gives as its answer; None when there is none or several.

    Looked for in this order: the last of `#### N`, a box and `<answer>`; the last sentence that
    states an answer ("The answer is N", "答案是N"); the last number of the text.
    """
    text = plain(after_thinking(response))
    for candidate in [*_strong_candidates(text), *stated_answers(text)]:
        match = _first_number(candidate)
        if match:
            hedged = _OTHER_NUMBER.match(candidate, match.end())
            return None if hedged else _number(match)
    numbers = list(_NUMBER.finditer(text))
    return _number(numbers[-1]) if numbers else None


def stated_answers(text: str) -> Iterator[str]:
    """What follows "the answer is", "答案是" and the like, up to the sentence's end; last first."""
    for mark in list(_STATED.finditer(text))[: -MAX_MARKS - 1 : -1]:
        rest = text[mark.end() : mark.end() + MAX_STATEMENT].lstrip(" \t\n*_")
        end = _SENTENCE_END.search(rest)
        stated = rest[: end.start() if end else None].strip()
        if stated:
            yield stated


def first_number_text(text: str) -> str | None:
    """The first number of a statement as it stands there; see `final_number`."""
    match = _first_number(text)
    return match[0].strip() if match else None


def last_number_text(text: str) -> str | None:
    """The last number of a text as it stands there."""
    numbers = list(_NUMBER.finditer(text))
    return numbers[-1][0].strip() if numbers else None


def same_number(gold: Number, answer: Number) -> bool:
    """Equal as numbers. A percent sign of the answer is a unit; of the gold, also a division."""
    if gold.value == answer.value:
        return True
    return gold.is_percent and not answer.is_percent and gold.value == answer.value * 100


def _strong_candidates(text: str) -> list[str]:
    """`#### N`, boxes and `<answer>`: the one that stands last comes first."""
    marks = list(_STRONG.finditer(text))[-MAX_MARKS:]
    found = [(mark.end(), mark[1] or mark[2] or "") for mark in marks]
    boxed = boxes(text)
    if boxed:
        found.append((boxed[-1].end, " or ".join(final_boxes(text))))
    return [content for _, content in sorted(found, reverse=True)]


def _first_number(text: str) -> re.Match[str] | None:
    """The first number of a statement; of `15 + 27 = 42 apples` the one behind the equation."""
    equation = _EQUATION.match(text)
    return _NUMBER.search(text, equation.end() if equation else 0)


def _number(match: re.Match[str]) -> Number:
    value = Fraction(match["body"].replace(",", ""))
    if match["below"] and int(match["below"]):
        value /= int(match["below"])
    if match["sign"] == "-" or match["inner"]:
        value = -value
    return Number(value, bool(match["percent"]))
