"""Finds the unit after an answer, and compares the units of two answers."""

from __future__ import annotations

import re

_UNITS = (
    r"mm|millimet(?:er|re)s?", r"cm|centimet(?:er|re)s?", r"dm|decimet(?:er|re)s?",
    r"m|met(?:er|re)s?", r"km|kilomet(?:er|re)s?", r"ft|feet|foot", r"in|inch(?:es)?", r"mi|miles?",
    r"yards?|yds?", r"kg|kilograms?", r"g|grams?|gm", r"mg|milligrams?", r"lbs?|pounds?",
    r"oz|ounces?", r"tons?|tonnes?", r"cents?", r"dollars?|usd", r"euros?|eur", r"hours?|hrs?|h",
    r"minutes?|mins?", r"seconds?|secs?|s", r"days?", r"weeks?", r"months?", r"years?|yrs?",
    r"degrees?|deg", r"radians?|rad", r"l|lit(?:er|re)s?", r"ml|millilit(?:er|re)s?",
    r"gal|gallons?", r"acres?", r"mph", r"kmh|kph", r"units?", r"percent", r"squared?|sq",
    r"cubic|cubed|cu", r"per", r"joules?", r"watts?", r"volts?", r"newtons?",
)  # fmt: skip
_UNIT = re.compile("|".join(f"(?P<u{i}>{unit})" for i, unit in enumerate(_UNITS)))
_POWERS = {match.lastindex for word in ("squared", "cubed") if (match := _UNIT.fullmatch(word))}
"""Indices in `_UNITS`, from 1, of the words for powers, which distinguish cm^2 from cm."""
_NEUTRAL_LIST = (
    "a an the of total all altogether exactly about approximately roughly only just long tall high "
    "wide deep away old each there are is so respectively"
)
_NEUTRAL = frozenset(_NEUTRAL_LIST.split())
_TEXT = re.compile(r"\\(?:text(?:bf|rm|it|normal|sf)?|math(?:rm|bf|it)|mbox)\s*\{([^{}]*)\}")
_SIGNS = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|°|\\?[$]")
_SQUARED = re.compile(r"([A-Za-z]+)\s*(?:\^\s*\{?\s*2\s*\}?|²)")
_CUBED = re.compile(r"([A-Za-z]+)\s*(?:\^\s*\{?\s*3\s*\}?|³)")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]+|[^\W\d_A-Za-z]+")
_POWER = r"(?:\s*\^\s*\{?\s*[23]\s*\}?|[²³])?"
_TAIL = re.compile(
    r"(?<=[\w)}\]])(?:\s|\\[ ,;:!])*(?:\\(?:text(?:bf|rm|it|normal|sf)?|math(?:rm|bf)|mbox)\s*"
    rf"\{{\s*(?P<text>[A-Za-z./ ]{{1,40}}){_POWER}\s*\}}{_POWER}"
    rf"|(?P<plain>(?<![A-Za-z\\])(?:[A-Za-z]{{2,12}}(?:\s|$){{1,2}}){{1,3}}){_POWER})\s*\.?\s*$"
)


def split_unit(answer: str) -> tuple[str, str]:
    """(answer without its known unit, that unit or "")."""
    tail = _TAIL.search(answer[-120:])
    if tail is None:
        return answer, ""
    words = [word.lower() for word in re.findall("[A-Za-z]+", tail["text"] or tail["plain"])]
    if not words or not all(_UNIT.fullmatch(word) or word in _NEUTRAL for word in words):
        return answer, ""
    start = len(answer) - len(answer[-120:]) + tail.start()
    return answer[:start].rstrip("\\ ,"), answer[start:]


def same_unit(gold: str, answer: str) -> bool | None:
    """Whether two answers have the same unit, or one of them omits it.

    None if each has words that the other lacks and these are not known units.
    """
    units, others = _words_of(gold), _words_of(answer)
    known, other_known = ({word for word in words if isinstance(word, int)}
                          for words in (units, others))  # fmt: skip
    if known - _POWERS and other_known - _POWERS and known & _POWERS != other_known & _POWERS:
        return False
    if units <= others or others <= units:
        return True
    if known and other_known and known != other_known:
        return False
    return None


def _words_of(answer: str) -> set[int | str]:
    """The words of an answer; known units as indices in `_UNITS`, from 1."""
    found: set[int | str] = set()
    text = _SIGNS.sub(_name_of_sign, _TEXT.sub(r" \1 ", answer))
    for word in _WORD.findall(_CUBED.sub(r"\1 cubed ", _SQUARED.sub(r"\1 squared ", text))):
        word = word.lower()
        unit = _UNIT.fullmatch(word)
        if unit:
            found.add(unit.lastindex or 0)
        elif word not in _NEUTRAL:
            found.add(word.removesuffix("s"))
    return found


def _name_of_sign(sign: re.Match[str]) -> str:
    return " dollars " if "$" in sign[0] else " degrees "
