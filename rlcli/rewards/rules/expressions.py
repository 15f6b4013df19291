"""Compares two mathematical answers: as texts, as numbers, then as sympy objects by math-verify.

math-verify's timeout is disabled: it needs the main thread and scores a timeout as a wrong answer.
Instead the pool kills a process that takes too long, and the rollout is unscored.
"""

from __future__ import annotations

import enum
import logging
import re
from fractions import Fraction
from itertools import product
from typing import Any

from math_verify import verify

from rlcli.rewards.rules.numbers import Number, fold, parse_number, same_number
from rlcli.rewards.rules.reading import read, with_function_commands
from rlcli.rewards.rules.units import same_unit, split_unit

MAX_ANSWER_CHARS = 1000
MAX_GROWTH = 10
"""How much longer than its gold an answer may be, beside 200 characters, to be computed."""
MAX_EXPONENT = 29
"""An answer is not computed with a larger one that its gold lacks: bad policies write 9^9^9."""
RELATIVE_ERROR = Fraction(1, 10**6)
"""Of a decimal that stands for a fraction without end: six digits of 1/3 are enough."""

_WORDS = r"\\(?:text(?:bf|rm|it|normal|sf|tt)?|math(?:rm|bf|it|sf|normal)|mbox)\s*"
TEXT = re.compile(_WORDS + r"\{([^{}]*)\}")
_OPEN_TEXT = re.compile(_WORDS + r"\{([^{}]*(?:\d|\b(?:or|and)\b)[^{}]*)\}")
_JOIN = re.compile(r"\s*,?\s*(?:(?<![A-Za-z\\])(?:or|and)(?![A-Za-z])|或者?|和)\s*")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{(.*)\}")
_GROUP = re.compile(r"(?<=\d)(?:,?\s?\\!|\\[,;: ]|\{,\})\s*(?=\d{3}(?!\d))")
_NAME = re.compile(r"(?:(?!\\(?:sqrt|pi)\b)[A-Za-z\\{}()\s'])*")
_ROOT = re.compile(r"√\s*(?:(\d+(?:\.\d+)?)|\(([^()]*)\))")
_ABOUT = re.compile(r"\\approx(?![a-zA-Z])|≈")
_DOLLAR = re.compile(r"(?:\b(?:US|CA|AU|HK))?(?<!\\)\$")
_SPACING = re.compile(r"\\[!,;: ]|(?<!\d)\s+|\s+(?!\d)")
_LABEL = re.compile(r"[A-Za-z\\{}_()\d\s']*")
_EQUALS = re.compile(r"(?<![<>!:=])=(?!=)")
_LIST = re.compile(r",\s|,(?!\d{3}(?!\d))(?!\\!)(?!\})")
_BASE = re.compile(r"(?P<digits>-?[\dA-Z][\dA-Z,.]*)_\{?(?P<base>\d{1,2})\}?")
_CHOICE = re.compile(r"\(?([A-Z])\)?\.?")
_LABELLED = re.compile(r"\(([A-J])\)(?:\s|\\[ ,;:])*([\w\\$.].*)")
_CHOSEN = re.compile(
    r"(?:(?:option|choice)\s+)?\(?([A-Z])(?:[.:](?:\s|$)|\)(?:\s+"
    r"(?!\\(?:cdot|times|cup|cap|mid|pm|mp|pmod|to)\b|(?:to|or|and)\s)[\w$\\]|\W*$)|$)",
    re.IGNORECASE,
)
_LOOSE = re.compile(r"\b(?:or|and|not|least|most|between)\b", re.IGNORECASE)
_HALF_DAY = re.compile(r"(?<!\\)\b([ap])\.?\s?m\b", re.IGNORECASE)
_LAYOUT = re.compile(
    r"\\(?:left|right)(?![a-zA-Z])\.?"
    r"|\\(?:displaystyle|textstyle|limits|nolimits|[bB]igg?[lrm]?)(?![a-zA-Z])"
)
_ROWS = re.compile(r"matrix|array|cases|align|gather|split")
_PURE_WORDS = re.compile(r"[A-Za-z]{3,}(?:[ -][A-Za-z]+)*")
_LETTERS = re.compile(r"[A-Z]{2,}")
_VARIABLE = re.compile(r"(?<=[\d}])[A-Za-z](?![A-Za-z])")
_UNIT_LETTER = re.compile(r"(?<=\d)\s?[mghsL]$")
_LETTER = re.compile(r"[A-Za-z]")
_SPELLINGS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\[dtc]frac", r"\\frac"), (r"\\(?:le|leqslant)(?![a-zA-Z])|≤", r"\\leq"),
        (r"\\(?:ge|geqslant)(?![a-zA-Z])|≥", r"\\geq"), (r"\\ne(?![a-zA-Z])|≠", r"\\neq"),
        (r"\\(?:c?dots[bcimo]?|ldots)(?![a-zA-Z])|…|\.\.\.", r"\\ldots"),
        (r"\\mid(?![a-zA-Z])", "|"), (r"\\(?:varnothing)(?![a-zA-Z])", r"\\emptyset"),
        (r"\{(\w)\}", r"\1"),
    )
]  # fmt: skip
_BOUND = re.compile(
    r"(?P<name>[A-Za-z])\s*(?P<sign><=|>=|[<>≤≥]|\\(?:leqslant|geqslant|leq?|geq?|lt|gt)(?![A-Za-z]))"
    r"\s*(?P<end>[^<>=≤≥,]+)"
)
_PLAIN = re.compile(
    r"(?:\\[dtc]?frac|\\overline|\\[{}]|\^\{?\\circ\}?|\\?%|[\d\s.,:{}()/^_\[\]-])+"
)
_CALCULATION = re.compile(r"[\d)}]\s*[-(]|\d\s+\d|\^[^^]*\^")
_EXPONENT = re.compile(r"\^[\s{(-]*(\d+)")
_TOWER = re.compile(r"\^[\s{(-]*\w+[\s{(]*[\^!]|\d{3,}\s*!|!\s*!")
_OPERATIONS = [
    re.compile(pattern)
    for pattern in (
        r"\\(?:sum|prod|i+nt|oint|lim|max|min|gcd|lcm|det|sup|inf)(?![a-zA-Z])",
        r"\\(?:[dt]?binom|choose)(?![a-zA-Z])|!",
        r"\\(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?(?![a-zA-Z])",
        r"\\(?:log|ln|lg|exp)(?![a-zA-Z])",
        r"\\(?:[lr]?floor|[lr]ceil|bmod|pmod|mod)(?![a-zA-Z])",
        r"\\[dt]?frac\s*\{\s*(?:\\mathrm\s*\{d\}|(?:d|\\partial)\b)[^{}]*\}"
        r"\s*\{\s*(?:\\mathrm\s*\{d\}|d|\\partial)\s*[a-zA-Z\\]",
        r"\\sqrt|sqrt\(|\^\s*\{?\(?\s*-?(?:\d+/|\\[dt]?frac|0\.)",
    )
]
# It warns once per process that its clock is off, and on every comparison it gives up.
logging.getLogger("math_verify").setLevel(logging.ERROR)


class Match(enum.Enum):
    """How an answer compares with a reference answer."""

    EQUAL = 1.0
    DIFFERENT = 0.0
    UNDECIDED = None
    """The texts differ, and at least one could not be parsed completely."""


def same_answer(gold: str, answer: str) -> bool:
    """Whether two answers are known to be equal."""
    return compare(gold, answer) is Match.EQUAL


def compare(gold: str, answer: str) -> Match:
    """Compare two answers: by their texts, by their numbers, then as expressions.

    Expressions are only compared if both were parsed completely. If the reference answer is a
    number, the answer must be one. Otherwise it may contain no operation that the reference answer
    lacks: repeating the problem in a box does not answer it.
    """
    if len(answer) > MAX_ANSWER_CHARS:
        return Match.DIFFERENT
    gold, answer = tidy(gold), tidy(answer)
    if _normal(gold) == _normal(answer):
        return Match.EQUAL if gold else Match.DIFFERENT
    known = _same_words(gold, answer)
    if known is not None:
        return Match.EQUAL if known else Match.DIFFERENT
    return _same_base(gold, answer) or _same_value(gold, answer) or _same_expression(gold, answer)


def _same_expression(gold: str, answer: str) -> Match:
    if _is_beyond(gold, answer):
        return Match.DIFFERENT
    (gold, unit), (answer, other_unit) = split_unit(gold), split_unit(answer)
    golds, answers = _readings(gold), _readings(answer)
    if not golds or not answers:
        return Match.EQUAL if _normal(gold) == _normal(answer) else Match.UNDECIDED
    if same_unit(unit, other_unit) is False:
        return Match.DIFFERENT
    is_equal = any(
        verify(one, other, timeout_seconds=None, allow_set_relation_comp=True)
        and not _differ_by_little(one, other)
        for one, other in product(golds, answers)
    )
    return Match.EQUAL if is_equal else Match.DIFFERENT


def _readings(answer: str) -> list[Any]:
    """Parses of an answer: `x<0, x>1` as two inequalities and as their union."""
    forms = [answer, _as_union(answer)]
    return [value for form in forms if form and (value := read(form)) is not None]


def _as_union(answer: str) -> str | None:
    """Inequalities separated by commas (formerly `or`) as a union of intervals, or None."""
    bounds = [_BOUND.fullmatch(part.strip()) for part in answer.split(",")]
    names = {bound["name"] for bound in bounds if bound}
    if len(bounds) < 2 or not all(bounds) or len(names) != 1:
        return None
    intervals: list[str] = []
    for bound in filter(None, bounds):
        is_open, end = bound["sign"] in ("<", ">", "\\lt", "\\gt"), bound["end"]
        if bound["sign"] in ("<", "\\lt", "\\le", "\\leq", "\\leqslant", "≤", "<="):
            intervals.append(f"(-\\infty, {end}{')' if is_open else ']'}")
        else:
            intervals.append(f"{'(' if is_open else '['}{end}, \\infty)")
    return " \\cup ".join(intervals)


def is_balanced(gold: str) -> bool:
    """Whether every brace of a text is closed."""
    return gold.count("{") == gold.count("}")


def reads_whole(gold: str) -> bool:
    """Whether an answer is compared by its value, or consists of words only."""
    gold = tidy(gold)
    bare = TEXT.sub(r"\1", gold)
    is_words = not re.search(r"[\d\\{}^_=+*/<>]", bare)
    is_known = parse_number(_sides(gold)[1], with_unit=True) or _CHOICE.fullmatch(bare.strip())
    return bool(is_words or is_known or _same_base(gold, gold) or _readings(split_unit(gold)[0]))


def tidy(answer: str) -> str:
    """One kind of digit and minus; `or` and `and` as commas; numbers and lists out of `\\text{}`.

    Of `1/3 \\approx 0.33` the exact side.
    """
    answer = _BOX.sub(r"\1", _DOLLAR.sub("", fold(answer).replace("**", "^")))
    if not _ROWS.search(answer):
        answer = re.sub(r"\\\\(?=[A-Za-z])", r"\\", answer)
    answer = re.sub(r"~(?!=)", " ", re.sub(r"!==?", r"\\neq ", answer))
    answer = _ROOT.sub(r"\\sqrt{\1\2}", answer)
    exact, *rounded = _ABOUT.split(answer, maxsplit=1)
    if rounded:
        answer = f"{exact}={rounded[0]}" if _NAME.fullmatch(exact) else exact
    answer = with_function_commands(_LAYOUT.sub("", answer))
    answer = _GROUP.sub("", _OPEN_TEXT.sub(r" \1 ", answer))
    answer = re.sub(r",\s*,", ",", _JOIN.sub(", ", answer))
    return answer.strip().rstrip(".").strip()


def _same_words(gold: str, answer: str) -> bool | None:
    """Of choices, words, times of day and names such as ABCD; None for everything else."""
    halves = [match and match[1].lower() for match in map(_HALF_DAY.search, (gold, answer))]
    if any(halves):
        times = [_letters(_HALF_DAY.sub("", text)).replace(":00", "") for text in (gold, answer)]
        return times[0] == times[1] and (halves[0] == halves[1] or not all(halves))
    bare = TEXT.sub(r"\1", gold).strip()
    choice = _CHOICE.fullmatch(bare)
    if choice:
        text = TEXT.sub(r"\1", answer).strip()
        chosen = _CHOSEN.match(text)
        is_alone = len(set(re.findall(r"\b([A-J])[.):]", text))) < 2
        return True if chosen and is_alone and chosen[1].upper() == choice[1] else None
    labelled = _LABELLED.fullmatch(bare)
    if labelled:
        return _same_choice(labelled[1], labelled[2], TEXT.sub(r"\1", answer).strip())
    if _LETTERS.fullmatch(bare):
        return _letters(bare) == _letters(answer)
    words = TEXT.sub(r"\1", answer).strip()
    if _PURE_WORDS.fullmatch(bare) and _PURE_WORDS.fullmatch(words):
        if bare.lower() == words.lower():
            return True
        if len(bare) > 3 or " " in bare:
            return False
    if re.fullmatch(r"[\s(]*" + _WORDS + r"\{[^{}\d]*\}[\s).]*", gold):
        return sorted(_letters(bare).split(",")) == sorted(_letters(answer).split(","))
    return None


def _same_choice(letter: str, value: str, answer: str) -> bool | None:
    """Compare with a reference answer such as `(C) 12` by its letter, its value, or both."""
    labelled = _LABELLED.fullmatch(answer)
    if labelled:
        return labelled[1] == letter and (same_answer(value, labelled[2]) or None)
    chosen = _CHOSEN.match(answer)
    return chosen[1].upper() == letter if chosen else same_answer(value, answer)


def _same_base(gold: str, answer: str) -> Match | None:
    """Compare numerals such as 2516_8 by digits and base; the answer may leave out the base."""
    numerals = [_SPACING.sub("", TEXT.sub("", text)) for text in (gold, answer)]
    found = [_numeral(numeral) for numeral in numerals]
    if not any(found):
        return None
    digits = [
        match["digits"] if match else text for match, text in zip(found, numerals, strict=True)
    ]
    bases = {match["base"] for match in found if match}
    if digits[0].replace(",", "") != digits[1].replace(",", "") or len(bases) != 1:
        return Match.DIFFERENT
    return Match.EQUAL if found[0] else Match.UNDECIDED


def _numeral(text: str) -> re.Match[str] | None:
    """Match of a numeral with its base, or None. CO_2 is not one: base 2 has no digit C."""
    match = _BASE.fullmatch(text)
    if match and all(int(d, 36) < int(match["base"]) for d in re.findall("[0-9A-Z]", match[1])):
        return match
    return None


def _same_value(gold: str, answer: str) -> Match | None:
    """Compare with a numeric reference answer; None if it is not numeric, or if undecided here."""
    (gold_sides, value), (sides, text) = _sides(gold), _sides(answer)
    if not all(_LABEL.fullmatch(side) for side in gold_sides):
        return None
    expected = parse_number(value, with_unit=True)
    if expected is None:
        return None
    if gold_sides and sides and _normal(gold_sides[0]) != _normal(sides[0]):
        return Match.DIFFERENT
    number = parse_number(text, with_unit=True)
    is_unit = same_unit(value, text)
    if is_unit is False or not _agree([*sides, text]):
        return Match.DIFFERENT
    if number is not None:
        if not (same_number(expected, number) or _is_rounded(expected, number)):
            return Match.DIFFERENT
        return Match.EQUAL if is_unit else Match.UNDECIDED
    if _LOOSE.search(text):
        return Match.DIFFERENT
    bare = TEXT.sub("", text)
    if _PLAIN.fullmatch(bare) and not _CALCULATION.search(bare):
        return None
    # `11 + 1` equals 12, but may only repeat the problem.
    found = Match.DIFFERENT if _is_beyond(gold, text) else _same_expression(value, text)
    return Match.UNDECIDED if found is Match.EQUAL else found


def _sides(answer: str) -> tuple[list[str], str]:
    """The left sides and the last side of an equation; lists are none."""
    if _LIST.search(answer):
        return [], answer
    *sides, last = _EQUALS.split(answer)
    return sides, last.strip()


def _agree(sides: list[str]) -> bool:
    """Whether the sides of an equation that are numbers are one number."""
    numbers = [number for number in map(parse_number, sides) if number]
    return all(same_number(numbers[-1], number) for number in numbers)


def _is_rounded(gold: Number, answer: Number) -> bool:
    """Whether one is a fraction without end and the other its decimal."""
    values = gold.value * gold.scale, answer.value * answer.scale
    endless = [pow(10, value.denominator.bit_length(), value.denominator) > 0 for value in values]
    error = abs(values[0] - values[1])
    return endless[0] != endless[1] and error <= RELATIVE_ERROR * max(map(abs, values))


def _is_beyond(gold: str, answer: str) -> bool:
    """Whether the answer leaves to be computed what the gold does not, or cannot be computed."""
    if _is_huge(gold, answer) or _drops_variable(gold, answer) or _drops_variable(answer, gold):
        return True
    return any(made.search(answer) and not made.search(gold) for made in _OPERATIONS)


def _is_huge(gold: str, answer: str) -> bool:
    """Whether an answer could take minutes to compare."""
    known = set(_EXPONENT.findall(gold))
    exponents = set(_EXPONENT.findall(answer)) - known
    if any(len(exponent) > 2 or int(exponent) > MAX_EXPONENT for exponent in exponents):
        return True
    is_tower = _TOWER.search(answer) is not None and _TOWER.search(gold) is None
    return is_tower or len(answer) > MAX_GROWTH * len(gold) + 200


def _differ_by_little(gold: Any, answer: Any) -> bool:
    """Whether two numbers are equal only because both are tiny: math-verify rounds off 1/2004!."""
    try:
        exact, given = (value.doit().evalf(30) for value in (gold, answer))
        return bool(abs(exact - given) > abs(exact) * RELATIVE_ERROR)
    except (AttributeError, TypeError, ValueError):
        return False  # sets, equations and expressions with variables are compared as such


def _drops_variable(one: str, other: str) -> bool:
    """Whether one is like `4t` and the other has no letter: math-verify takes t for tonnes."""
    one = _UNIT_LETTER.sub("", TEXT.sub("", one))
    return "=" not in one and bool(_VARIABLE.search(one)) and not _LETTER.search(other)


def _letters(text: str) -> str:
    """The words of a text, and the signs that may change its meaning."""
    words = re.sub(r"(?<=[A-Za-z])-(?=[A-Za-z])", "", TEXT.sub(r"\1", text))
    return re.sub(r"[^\w,:<>=+~≠≤≥-]", "", words).lower()


def _normal(answer: str) -> str:
    answer = _SPACING.sub("", TEXT.sub(r"\1", TEXT.sub(r"\1", answer))).replace("$", "")
    for pattern, replacement in _SPELLINGS:
        answer = pattern.sub(replacement, answer)
    return answer.rstrip(".")
