"""Grades mathematical answers: equal expressions count, not equal texts alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rlcli.data.boxed_answers import final_boxes, gold_box
from rlcli.rewards.rules.answers import (
    MAX_STATEMENT,
    after_thinking,
    last_number_text,
    marked_answers,
    stated_answers,
    stated_number_text,
    with_opening,
    without_label,
)
from rlcli.rewards.rules.closing import without_closing
from rlcli.rewards.rules.expressions import (
    MAX_ANSWER_CHARS,
    TEXT,
    Match,
    compare,
    is_balanced,
    reads_whole,
    same_answer,
)
from rlcli.rewards.rules.numbers import fold, parse_number, with_decimal_points
from rlcli.rewards.rules.references import alternatives, problem_of_any, score_any
from rlcli.rewards.rules.undecided import InvalidReference, Undecided

TAIL_CHARS = 300
_INLINE_MATH = re.compile(r"(?<!\\)\$+((?:[^$\\]|\\.)+)\$+|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_JOINED = re.compile(r"\s*(?:,?\s*(?:or|and)|,|或者?|和|、)\s*", re.IGNORECASE)
_WORD = re.compile(
    r"(?<![\\A-Za-z{\d])(?:[A-Za-z]{3,}|(?:is|or|so|we|of|in|it|to|no|at|by|if|an|as)\b)"
    r"|[\u0400-\u052f\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]{2,}",
    re.IGNORECASE,
)
_CHOICE = re.compile(
    r"(?:option|choice)?\s*(\(?[A-J](?:[.):,]+(?!\s*(?:or|and)\b)|$))", re.IGNORECASE
)
_VALUE = re.compile(r"\s*(?:is|are|was|equals|=)\s+(?=[-+$€£¥]?\s?\.?\d)")
_NEXT_SENTENCE = re.compile(r"[.!?]\s|[。！？\n]")


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
) -> float:
    """1.0 when the response's final answer equals the gold, else 0.0.

    The last box counts; boxes with nothing but "or", "and" or a comma between them count
    together, so that two different ones match no single gold. Undecided: no answer, or several.

    Any of several reference answers counts.

    Raises:
        InvalidReference: the reference answer cannot be read, and the answer is not the same text.
    """
    solution_str = with_opening(solution_str, extra_info)
    return score_any(ground_truth, lambda reference: _score(solution_str, reference))


def _score(solution_str: str, ground_truth: Any) -> float:
    gold = _gold(ground_truth)
    answer = final_answer(solution_str)
    match = compare(gold, answer) if answer is not None else Match.UNDECIDED
    if match is Match.EQUAL or _is_equal_with_decimal_points(gold, solution_str):
        return 1.0
    if answer is None:
        return Undecided()
    if problem := _problem(ground_truth):
        raise InvalidReference(problem)
    return Undecided() if match is Match.UNDECIDED or _is_torn(solution_str) else 0.0


def reference_problem(ground_truth: Any, extra_info: Mapping[str, Any] | None = None) -> str | None:
    """Why this reference answer cannot be graded against; None when it can."""
    return problem_of_any(ground_truth, _problem)


def gold_note(ground_truth: Any) -> str | None:
    """The first reference answer that is only compared as text, because it cannot be parsed."""
    references = [str(reference) for reference in alternatives(ground_truth)]
    return next((text for text in references if not reads_whole(_gold(text))), None)


def _problem(reference: Any) -> str | None:
    if reference is None or not str(reference).strip():
        return "ground_truth is empty"
    gold = _gold(reference)
    if not is_balanced(gold) or len(gold) > MAX_ANSWER_CHARS:
        return f"ground_truth {gold[:60]!r} cannot be read as an answer"
    return None


def final_answer(response: str) -> str | None:
    """The answer that a response ends with, as LaTeX; None when it has none.

    Looked for in this order: boxes, `#### x` and `<answer>`, "the answer is x", a response that
    is nothing but a formula, the last formula or number.
    """
    text = after_thinking(response).strip()
    boxed = final_boxes(text)
    if boxed:
        return _one_or_all(list(dict.fromkeys(map(_without_words, boxed))))
    raw, text = text, fold(text)
    marked = marked_answers(text)
    stated = marked[-1][1].strip() if marked else next(stated_answers(text), None)
    if stated:
        return _formula(stated)
    first = _INLINE_MATH.match(text)
    if first and first.end() == len(text) and not _words(_inside(first)):
        return _inside(first)
    if _is_formula(text):
        return text or None
    return _last_formula(without_closing(text[-2 * TAIL_CHARS :])) or last_number_text(raw)


def _gold(ground_truth: Any) -> str:
    text = str(ground_truth).strip()
    return gold_box(text) or text


def _is_equal_with_decimal_points(gold: str, response: str) -> bool:
    """Whether the response equals this decimal number if its commas are decimal points."""
    number = parse_number(gold, with_unit=True)
    pointed = with_decimal_points(response)
    if number is None or number.value.denominator == 1 or pointed == response:
        return False
    answer = final_answer(pointed)
    return answer is not None and same_answer(gold, answer)


def _is_torn(response: str) -> bool:
    """Whether the last boxes count together and differ."""
    return not _agree(final_boxes(after_thinking(response).strip()))


def _agree(boxed: list[str]) -> bool:
    return all(same_answer(boxed[-1], other) for other in boxed[:-1])


def _one_or_all(boxed: list[str]) -> str:
    return boxed[-1] if _agree(boxed) else ", ".join(boxed)


def _without_words(boxed: str) -> str:
    """The answer of a sentence in a box: 42 in `\\text{The answer is } 42`."""
    text = TEXT.sub(r" \1 ", boxed).strip()
    stated = next(stated_answers(text), None)
    if stated is None and (stated := without_label(text)) == text:
        return boxed
    return _formula(stated)


def _formula(stated: str) -> str:
    """The formulas of a statement that are joined by "or"; of `42 apples in total` the number."""
    stated = stated[:MAX_STATEMENT]
    formulas = _formulas(stated)
    if formulas:
        last = 0
        while last + 1 < len(formulas) and _are_joined(stated, formulas[last : last + 2]):
            last += 1
        return ", ".join(map(_inside, formulas[: last + 1]))
    choice = _CHOICE.match(stated)
    if choice:
        return choice[1]
    if _words(stated):
        return stated_number_text(stated) or stated
    return stated.lstrip(" *_").rstrip(" .*_")


def _last_formula(text: str) -> str | None:
    """The last formulas, if joined by "or" all of them, or the number a sentence gives for them.

    A number in a later sentence takes precedence.
    """
    formulas = _formulas(text[-TAIL_CHARS:])
    if not formulas:
        return None
    first = len(formulas) - 1
    while first and _are_joined(formulas[0].string, formulas[first - 1 : first + 1]):
        first -= 1
    behind = formulas[-1].string[formulas[-1].end() :]
    if (value := _VALUE.match(behind)) and (number := stated_number_text(behind[value.end() :])):
        return number
    rest = _NEXT_SENTENCE.split(behind, maxsplit=1)[1:]
    later = last_number_text(rest[0]) if rest else None
    return later or ", ".join(map(_inside, formulas[first:]))


def _is_formula(text: str) -> bool:
    """Whether a response is one formula or one word."""
    is_short = "\n" not in text and len(text) <= TAIL_CHARS
    return is_short and (not _words(text) or re.fullmatch(r"\$?[A-Za-z]+\$?\.?", text) is not None)


def _formulas(text: str) -> list[re.Match[str]]:
    """Formulas between dollar signs or `\\(`, `\\[`; `$5 and $` is not one.

    Takes quadratic time if brackets are never closed, so pass a short text.
    """
    return [match for match in _INLINE_MATH.finditer(text) if not _words(_inside(match))]


def _are_joined(text: str, pair: list[re.Match[str]]) -> bool:
    return bool(_JOINED.fullmatch(text[pair[0].end() : pair[1].start()]))


def _words(text: str) -> list[str]:
    return _WORD.findall(TEXT.sub("", text))


def _inside(formula: re.Match[str]) -> str:
    return next(filter(None, formula.groups()))
