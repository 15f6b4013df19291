"""Numbers in all the ways models and data sets write them."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple


class Number(NamedTuple):
    """A number as written, and what a percent sign or "million" behind it multiplies it by."""

    value: Fraction
    scale: Fraction = Fraction(1)


PERCENT = Fraction(1, 100)
CURRENCY = "$€£¥₹₽₩"
MAX_DIGITS = 1000
"""Numbers with more digits are none: Python refuses to read them from 4,300 on."""

_TYPOGRAPHY: dict[int, str] = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
_TYPOGRAPHY |= dict.fromkeys([0x2010, 0x2011, 0x2012, 0x2013, 0x2212, 0xFE63], "-")
_TYPOGRAPHY |= dict.fromkeys([0xA0, 0x2007, 0x2009, 0x202F, 0x3000], " ")
_TYPOGRAPHY |= dict.fromkeys([0, 0x200B, 0x2060, 0xFEFF], "")
_TYPOGRAPHY |= {0xFFE5: "¥", 0xFFE1: "£", 0x2044: "/", 0x2019: "'"}
_TYPOGRAPHY |= {0xBC: " 1/4", 0xBD: " 1/2", 0xBE: " 3/4", 0x2153: " 1/3", 0x2154: " 2/3"}
_GROUP_SPACE = re.compile("(?<=[0-9])[\u00a0\u2007\u2009\u202f](?=[0-9]{3}(?![0-9]))")
_BOLD = re.compile(r"(?<!\w)\*\*|\*\*(?!\w)|`")
_LATEX = [
    (re.compile(r"(?<=\d)(?:,?\s?\\!|\\[,;: ])\s*(?=\d{3}(?!\d))"), ""),
    (re.compile(r"\{,\}(?=\d)"), ","),
    (re.compile(r"\^\s*(?:\\circ(?![a-zA-Z])|\{\s*\\circ\s*\})|\\degree(?![a-zA-Z])"), "°"),
    (re.compile(r"\\approx(?![a-zA-Z])"), "≈"),
    (re.compile(r"\\(?:(?:left|right|displaystyle|q?quad)(?![a-zA-Z])|[,;:!\s])"), " "),
    (re.compile(r"\\(?:text(?:bf|it|rm)?|math(?:rm|bf)|mbox|underline)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"(?<=\d)\s*(?=\\[dt]?frac)"), " "),
    (re.compile(r"\\[dt]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}"), r"\1/\2"),
    (re.compile(r"\\[dt]?frac\s*(\d)\s*(\d)"), r"\1/\2"),
    (re.compile(r"\\(?:times|cdot)(?![a-zA-Z])"), "×"),
    (re.compile(r"\\(?=[$%#&])"), ""),
    (re.compile(r"\b(?:US|CA|AU|HK)\$"), "$"),
    (re.compile(r"(?<![\w-])negative\s+(?=[$€£¥]?\.?\d)", re.IGNORECASE), "-"),
    (re.compile(r"(^|[:=(,]\s*|\b(?:is|are|was|be|equals|or|and|ist|est|es|è|é|là|равен|равно)\s+)"
                r"(?:minus|moins|menos|meno|минус|âm)\s+(?=[$€£¥]?\.?\d)", re.IGNORECASE), r"\1-"),
    (re.compile(r"(?:(?<![正胜勝])[负負]|マイナス|마이너스)\s?(?=\.?\d)"), "-"),
]  # fmt: skip
# Repeats have bounds, because a text of nothing but digits and commas takes quadratic time.
_GROUPED = r"\d{1,3}(?:,\d{2,3}){0,30},\d{3}(?:\.\d+)?(?![\d,]{0,40}\d)"
_SPACED = r"[1-9]\d{0,2}(?: \d{3}){1,9}(?:\.\d+)?(?! ?\d)"
_EUROPEAN = r"\d{1,3}(?:\.\d{3}){1,9},\d{1,2}(?![\d,.]{0,40}\d)"
_POWER_OF_TEN = (
    r"[eE](?P<e>[-+]?\d{1,3})(?![\w.])|\s?[×*]\s?10\s?\^\s?\{?(?P<ten>[-+]?\d{1,3})\b\}?"
)
_SCALES = {
    "%": PERCENT,
    "percent": PERCENT,
    "per cent": PERCENT,
    "thousand": Fraction(10**3),
    "million": Fraction(10**6),
    "billion": Fraction(10**9),
    "trillion": Fraction(10**12),
    "万": Fraction(10**4),
    "亿": Fraction(10**8),
}
NUMBER = re.compile(
    rf"(?:(?<![A-Za-z0-9_)\].])(?P<sign>[-+])(?=[{CURRENCY}\d.]))?"
    rf"(?:[{CURRENCY}]\s?(?P<inner>-)?)?(?<![A-Za-z0-9_.])"
    r"(?:(?P<whole>\d+)\s\s?(?=\d+\s?/\s?\d))?"
    rf"(?P<body>{_EUROPEAN}|{_GROUPED}|{_SPACED}|\d+(?:\.\d+)?|\.\d+)"
    r"(?:(?<=\d)(?P<cycle>\.?\\(?:over|dot)[a-z]*\s?\{\d{1,20}\}))?"
    r"(?:\s?/\s?(?P<below>\d+)(?!\d|\.\d))?"
    rf"(?:{_POWER_OF_TEN})?"
    r"(?P<scale>\s?(?:%|percent\b|per cent\b|(?:thousand|million|billion|trillion)\b|[万亿]))?"
)
"""A number in folded text. Read with `number_of`."""
_DECIMAL_COMMA = re.compile(r"(?<=\d),(?=(?:\d{1,2}|\d{4,12})(?![\d,]|\.\d))|(?<=\b0),(?=\d{3}\b)")
_POWER = re.compile(r"(\d{1,9})\^\s?\{?(-?\d{1,3})\}?")
_SCRIPTS = "\u0400-\u052f\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af"
"""Cyrillic, kana, Chinese characters, hangul."""
_WORD = rf"(?:[a-zA-Z\u00c0-\u024f]{{2,}}|[mgshlL]\b|°[CF]?|[{_SCRIPTS}]+)"
_UNIT = re.compile(
    rf"\s*[{CURRENCY}]?\s*(?:{_WORD}(?:\s?\^\s?\{{?[23]\}}?|[\u00b2\u00b3])?\.?[\s/]*){{0,4}}"
)
_NO_UNIT = re.compile(
    r"\b(?:or|and|to|minus|plus|times|squared|cubed|pi|или|до|oder|ou)\b|[或和至到]|または|또는",
    re.IGNORECASE,
)


def with_decimal_points(text: str) -> str:
    """The text with `3,85` as `3.85`; `1,234` and `1, 5` are unchanged."""
    return _DECIMAL_COMMA.sub(".", text)


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
    text = plain(text).strip().rstrip(".。 ").rstrip("$").strip()
    text = text[1:].strip() if text.startswith("$") else text
    power = _POWER.fullmatch(text)
    if power and (int(power[1]) or int(power[2]) > 0):
        return Number(Fraction(int(power[1])) ** int(power[2]))
    match = NUMBER.match(text)
    if match is None:
        return None
    end = match.end()
    if with_unit:
        unit = _UNIT.match(text, end)
        end = unit.end() if unit and not _NO_UNIT.search(unit[0]) else end
    return number_of(match) if end == len(text) else None


def number_of(match: re.Match[str]) -> Number | None:
    """What a match of `NUMBER` says; None for a division by zero."""
    body = match["body"]
    if re.fullmatch(_EUROPEAN, body):
        body = body.replace(".", "").replace(",", ".")
    if len(match[0]) > MAX_DIGITS or (match["below"] and not int(match["below"])):
        return None
    body = body.replace(",", "").replace(" ", "")
    value = (Fraction(body) + _endless(body, match["cycle"])) / int(match["below"] or 1)
    value += int(match["whole"] or 0)
    value *= Fraction(10) ** int(match["e"] or match["ten"] or 0)
    if match["sign"] == "-" or match["inner"]:
        value = -value
    return Number(value, _SCALES.get((match["scale"] or "").strip(), Fraction(1)))


def _endless(body: str, cycle: str | None) -> Fraction:
    """What digits that repeat without end add to a decimal: 1/3 for `0.` and `3`."""
    if not cycle:
        return Fraction(0)
    digits = re.sub(r"\D", "", cycle)
    places = len(body.partition(".")[2])
    return Fraction(int(digits), (10 ** len(digits) - 1) * 10**places)


def same_number(gold: Number, answer: Number) -> bool:
    """Equal as numbers. Where one of the two has "%" or "million", that may be its unit."""
    if 1 in (gold.scale, answer.scale) and gold.value == answer.value:
        return True
    return gold.value * gold.scale == answer.value * answer.scale
