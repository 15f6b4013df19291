"""The final answer that a response states, and the number it is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from rlcli.data.boxed_answers import boxes, final_boxes
from rlcli.rewards.rules.closing import without_closing
from rlcli.rewards.rules.numbers import (
    CURRENCY,
    NUMBER,
    Number,
    number_of,
    parse_number,
    plain,
    same_number,
)
from rlcli.types import RESPONSE_PREFIX

MAX_STATEMENT = 2000
"""Characters read behind "the answer is"."""
MARKER_CHARS = 200
"""Length of a response's end, in characters, that is searched for chat template markers."""
MAX_MARKS = 32
"""Statements looked at, from the last on: a response that only repeats itself costs no more."""
MAX_TAIL = 10_000
"""Characters at the end of a response in which a number that nothing announces is looked for."""

_JOINED = r"or|and|to|vs\.?|versus|или|oder|ou|または|또는|,|;|/|\||~|或者?|和|与|至|到|、|±|\\pm"
_HEDGES = r"either|maybe|perhaps|possibly|it|is|be|could|might"
_OTHER_NUMBER = re.compile(
    rf"(?:[ \t]*[$)(]|[ \t]*\\\))?[ \t]*(?:(?:{_JOINED})\s*(?:{_HEDGES}|\s)*"
    rf"|[A-Za-z\u4e00-\u9fff]{{1,20}}\s+(?:[A-Za-z]{{1,20}}\s+)?(?:or|或者?)\s+)?"
    rf"(?:\\?\()?(?=[-+{CURRENCY}]*\.?\d)",
    re.IGNORECASE,
)
_GOES_ON = re.compile(
    r"\s?(?:[-+*/×÷_]|\*\*)\s?[({\\$]*(?:\d|[nxyz](?![a-zA-Z]))|\s?\^"
    r"|\s?\\(?:sqrt|pi|sin|cos|tan|log|ln|div|pm|over|choose|frac|overline)(?![a-zA-Z])"
    r"|\s?[π√]|\s?[ixyz](?![a-zA-Z])|\.\d|[eE][-+]?\d|\s(?:squared|cubed|minus|plus|times)\b"
)
"""What makes the number before it a part of something larger."""
_COMES_FROM = re.compile(
    r"(?:[\^_√×÷*/±~<>≤≥≠!]|(?:[\d)]|\b[a-zA-Z])\s?[-+]|--|\\[a-zA-Z]+\s?[\[({]?|\b[a-zA-Z]{1,6}\()"
    r"[\s({]*$|(?:\bnot|n't|\bnever|\b(?:less|more|greater|fewer) than|\bat (?:least|most)"
    r"|\bminus|正[负負]"
    r"|不是|并非|[大小多少]于)\s*$"
)
"""What makes the number behind it a part of something larger, or no answer."""
_MARKED = re.compile(
    r"####\s*(?:(?:final\s+)?answer\s*(?:is\b|:)?\s*)?(?=[^\w\n]{0,3}\d|(?:[A-Z]{2})?[$\\({\[]"
    r"|[A-J]\b[.)]?[ \t]*$)([^\n]*)|<answer>(.{0,500}?)</answer>",
    re.IGNORECASE | re.DOTALL | re.MULTILINE,
)
_STATED = re.compile(
    r"\banswers?\b(?:\s+to\s[^.\n:=]{1,80}?)?[\s*]*"
    r"(?:(?:is|are|was|equals|(?:would|will|should|must|has to) be"
    r"|comes? (?:out )?to|turns out to be)\b(?!\s*not\b)|=|:)+\s*:?"
    r"|^[^\w\n]*(?:final\s+)?answer[^\w\n]*$"
    r"|(?:答え|正解|解答)\s*(?:は|:|=)+|(?:정답|답)\s*(?:은|는|:)+"
    r"|\b(?:ответ|respuesta|réponse|resposta|risposta|antwort|đáp án|đáp số)"
    r"(?:\s+(?:final\w*|finale))?\s*(?::|=|\b(?:es|est|è|é|ist|lautet|là|равен)\b)+"
    r"|(?:答案|结果|得数|^[ \t]*答)\s*(?:应该|应当|就|便)?\s*(?:是|为|等于|:|=|】)+"
    r"|(?:故|应|该|[本此]题|综上|因此|所以|答案|正确),?选(?:择|项)?\s*(?:是|为|:)?"
    r"\s*(?=[(（]?[A-J])",
    re.IGNORECASE | re.MULTILINE,
)
_LABELLED = re.compile(
    r"(?:(?:so|thus|therefore|hence)[, ]+)?(?:the|an?|our|its|their|his|her|total|max|min)\w*\b"
    r"(?:\$[^$\n]{1,60}\$|\\\([^\n]{1,60}?\\\)|[^$\d.,;:=\n]){0,120}?\s"
    r"(?:is|are|was|equals)\s+(?P<value>.*)",
    re.IGNORECASE | re.DOTALL,
)
_MARKERS = re.compile(
    r"(?:\s*(?:<\|[\w.-]{2,30}\|>|</s>|<eos>|<(?:start|end)_of_turn>)"
    r"(?:\s*(?:user|assistant|system|model))?)+\s*$"
)
_SENTENCE_END = re.compile(r"(?<!\\)(?:[.!?](?=\s|$)|[。!?;])|\n")
_BOLD_NUMBER = re.compile(r"\*\*([^*\n]{1,40})\*\*(?=[^=]*$)")
_SENTENCE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_EQUALS = re.compile("[=≈]")
_WHY = re.compile(r"\b(?:since|because|as|so|where|check|from|when|for|if)\b|[,;:。]\s|[因由从]")


def with_opening(response: str, extra_info: Mapping[str, Any] | None) -> str:
    """The response, preceded by the `<think>` with which its prompt ends, if any."""
    prefix = (extra_info or {}).get(RESPONSE_PREFIX)
    return prefix + response if isinstance(prefix, str) else response


def after_thinking(text: str) -> str:
    """The text behind the last `</think>`, up to an unclosed `<think>`, without chat markers."""
    text = text.rpartition("</think>")[2].partition("<think>")[0]
    tail = text[-MARKER_CHARS:]
    markers = _MARKERS.search(tail)
    return text[: len(text) - len(tail) + markers.start()] if markers else text


def final_number(response: str) -> Number | None:
    """The number that a response gives as its answer; None when there is none or several.

    Looked for in this order: the last of `#### N`, a box and `<answer>`; the last sentence that
    states an answer ("The answer is N", "答案是N"); the last number of the text, which may be bold
    and have good wishes or a check behind it.
    """
    response = after_thinking(response)
    text = plain(response)
    for candidate in [*_strong_candidates(text), *stated_answers(text)]:
        if any(character.isdigit() for character in candidate):
            return stated_number(candidate)
    last = last_number_text(response)
    return parse_number(last, with_unit=True) if last else None


def stated_answers(text: str) -> Iterator[str]:
    """What follows "the answer is", "答案是" and the like, up to the sentence's end; last first."""
    for mark in list(_STATED.finditer(text))[: -MAX_MARKS - 1 : -1]:
        rest = text[mark.end() : mark.end() + MAX_STATEMENT].lstrip(" \t\n*_")
        end = _SENTENCE_END.search(rest)
        stated = rest[: end.start() if end else None].strip()
        if stated:
            yield without_label(stated)


def without_label(statement: str) -> str:
    """The value in a sentence with a subject: 58 in "the smallest $k$ is 58"."""
    labelled = _LABELLED.match(statement)
    if labelled and re.search(r"[\d$\\]", labelled["value"]):
        return labelled["value"].strip()
    return statement


def stated_number(statement: str) -> Number | None:
    """The number of a plain statement: its first; of `15 + 27 = 42 apples` the one behind `=`.

    None when another number is given beside it (`5 or 6`), or when it is only a part of the
    answer (`2^5`, `5x`, `5 + 6`).
    """
    match = _stated_match(statement)
    return _whole_number(match) if match else None


def stated_number_text(statement: str) -> str | None:
    """The number of a statement as it stands there; see `stated_number`."""
    match = _stated_match(plain(statement))
    return match[0].strip() if match and _whole_number(match) else None


def last_number_text(text: str) -> str | None:
    """A text's last number as it stands there: one in bold, or the last of all."""
    tail = without_closing(text[-MAX_TAIL:])
    bold = _BOLD_NUMBER.findall(tail)
    if bold and parse_number(bold[-1], with_unit=True):
        return bold[-1]
    tail = plain(tail)
    matches = list(NUMBER.finditer(tail))[-2:]
    if len(matches) == 2 and not _is_alone(matches[0], before=matches[1].end()):
        return None
    return matches[-1][0].strip() if matches and _whole_number(matches[-1]) else None


def _stated_match(statement: str) -> re.Match[str] | None:
    start, sides = _equation(statement)
    match = NUMBER.search(statement, start)
    if match is None or not _is_alone(match, before=len(statement)):
        return None
    number = number_of(match)
    known = [side for side in map(parse_number, sides) if side]
    return match if number and all(same_number(number, side) for side in known) else None


def _is_alone(match: re.Match[str], *, before: int) -> bool:
    """Whether no other number is offered beside this one; 42 beside 42.0 is no other."""
    number = number_of(match)
    joined = _OTHER_NUMBER.match(match.string, match.end(), before)
    while number and joined:
        other = NUMBER.search(match.string, joined.end(), before)
        value = number_of(other) if other else None
        if other is None or value is None or not same_number(number, value):
            return False
        joined = _OTHER_NUMBER.match(match.string, other.end(), before)
    return True


def _whole_number(match: re.Match[str]) -> Number | None:
    """The number of a match, unless it is a part of something larger."""
    text = match.string
    before = text[max(0, match.start() - 40) : match.start()]
    if _COMES_FROM.search(before) or _GOES_ON.match(text, match.end()):
        return None
    return number_of(match)


def marked_answers(text: str) -> list[tuple[int, str]]:
    """Where it ends and what it says, of every `#### x` and `<answer>`.

    Those with nothing between them count together, so that two different ones are no answer.
    """
    found: list[tuple[int, str]] = []
    for mark in list(_MARKED.finditer(text))[-MAX_MARKS:]:
        content = mark[1] or mark[2] or ""
        if found and not text[found[-1][0] : mark.start()].strip():
            before = found.pop()[1]
            if content != before and not _SENTENCE.search(before):
                content = f"{before} or {content}"
        found.append((mark.end(), " or ".join(final_boxes(content)) or content))
    return found


def _strong_candidates(text: str) -> list[str]:
    """`#### N`, boxes and `<answer>`: the one that stands last comes first."""
    found = marked_answers(text)
    boxed = boxes(text)
    if boxed:
        # In a box an exclamation mark is a factorial.
        found.append((boxed[-1].end, " or ".join(final_boxes(text)).replace("!", "^")))
    return [content for _, content in sorted(found, reverse=True)]


def _equation(statement: str) -> tuple[int, list[str]]:
    """Where the last right side of an equation begins, and the sides it equals; 0 without one."""
    start, sides = 0, list[str]()
    for sign in list(_EQUALS.finditer(statement))[:MAX_MARKS]:
        side = statement[start : sign.start()]
        is_label = not re.search(r"\d", side)
        is_formula = re.search(r"[-+*/×÷^]|\d\s?\(", side) or parse_number(side)
        is_closed = side.count("(") == side.count(")")
        if not is_closed or _WHY.search(side) or not (is_label or is_formula):
            break
        sides += [side] if sign[0] == "=" else []
        start = sign.end()
    return start, sides
