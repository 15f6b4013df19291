"""Grades mathematical answers by math-verify: equal expressions count, not equal texts alone.

math-verify's own clock is off: it needs the main thread and turns a timeout into a wrong answer.
The pool's clock kills the process instead, and the rollout is unscored.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

from rlcli.boxed import final_boxes, gold_box
from rlcli.rewards.rules.answers import (
    after_thinking,
    first_number_text,
    fold,
    last_number_text,
    parse_number,
    same_number,
    stated_answers,
)

MAX_ANSWER_CHARS = 1000
TAIL_CHARS = 300
_HASHES = re.compile(r"####\s*(?=[$\\({\[\d.+-])([^\n]+)")
_INLINE_MATH = re.compile(r"(?<!\\)\$+((?:[^$\\]|\\.)+)\$+|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_SPACING = re.compile(r"\\(?:left|right)(?![a-zA-Z])|\\[!,;: ]|\s+")
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mbox)\{([^{}]*)\}")
_WORD = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{2,}")
_VARIABLE = re.compile(r"(?<=[\d}])[A-Za-z](?![A-Za-z])")
_LETTER = re.compile(r"[A-Za-z]")
_TARGETS = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())

# It warns once per process that its clock is off, and on every comparison it gives up.
logging.getLogger("math_verify").setLevel(logging.ERROR)


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
) -> float:
    """1.0 when the response's final answer equals the gold, else 0.0.

    The last box counts; boxes with nothing but "or", "and" or a comma between them count
    together, so that two different ones match no single gold.
    """
    answer = final_answer(solution_str)
    return float(answer is not None and same_answer(_gold(ground_truth), answer))


def gold_problem(ground_truth: Any) -> str | None:
    """Why this gold cannot be graded against; None when it can."""
    gold = _gold(ground_truth)
    if not gold:
        return "ground_truth is empty"
    if gold.count("{") != gold.count("}") or not _parsed(gold):
        return f"ground_truth {gold[:60]!r} cannot be read as an answer"
    return None


def final_answer(response: str) -> str | None:
    """The answer that a response ends with, as LaTeX; None when it has none.

    Looked for in this order: boxes, `#### x`, "the answer is x", the last formula or number.
    """
    text = after_thinking(response).strip()
    boxed = final_boxes(text)
    if boxed:
        return _one_or_all(boxed)
    text = fold(text)
    hashes = _HASHES.findall(text)
    stated = hashes[-1] if hashes else next(stated_answers(text), None)
    if stated is not None:
        return _formula(stated)
    formulas = list(_INLINE_MATH.finditer(text[-TAIL_CHARS:]))
    return _inside(formulas[-1]) if formulas else last_number_text(text[-TAIL_CHARS:])


def same_answer(gold: str, answer: str) -> bool:
    """Whether two answers are the same text, number or expression."""
    if len(answer) > MAX_ANSWER_CHARS:
        return False
    if _normal(gold) == _normal(answer):
        return bool(gold)
    numbers = parse_number(gold), parse_number(answer)
    if numbers[0] and numbers[1]:
        if same_number(numbers[0], numbers[1]):
            return True
        is_exact = all(number and number.value.denominator == 1 for number in numbers)
        if is_exact or numbers[0].is_percent or numbers[1].is_percent:
            return False
    if _drops_variable(_TEXT.sub("", gold), answer):
        return False
    return bool(verify(list(_parsed(gold)), list(_parsed(answer)), timeout_seconds=None))


def _gold(ground_truth: Any) -> str:
    text = str(ground_truth).strip()
    return gold_box(text) or text


def _one_or_all(boxed: list[str]) -> str:
    if all(same_answer(boxed[-1], other) for other in boxed[:-1]):
        return boxed[-1]
    return ", ".join(boxed)


def _formula(stated: str) -> str:
    """The formula of a statement; of `42 apples in total` the number."""
    match = _INLINE_MATH.search(stated)
    if match:
        return _inside(match)
    if len(_WORD.findall(stated)) > 1:
        return first_number_text(stated) or stated
    return stated.strip(" .*_")


def _inside(formula: re.Match[str]) -> str:
    return next(filter(None, formula.groups()))


def _drops_variable(gold: str, answer: str) -> bool:
    """Whether gold is like `4t` and the answer has no letter: math-verify takes t for tonnes."""
    return "=" not in gold and bool(_VARIABLE.search(gold)) and not _LETTER.search(answer)


def _normal(answer: str) -> str:
    answer = _SPACING.sub("", _TEXT.sub(r"\1", answer)).replace("$", "")
    return answer.replace("dfrac", "frac").replace("tfrac", "frac").rstrip(".")


@lru_cache(maxsize=4096)
def _parsed(answer: str) -> tuple[Any, ...]:
    """What math-verify makes of an answer; golds come again for every rollout of a group."""
    if answer.count("{") == answer.count("}"):
        # An unescaped percent sign starts a LaTeX comment.
        boxed = "\\boxed{" + re.sub(r"(?<!\\)%", r"\\%", answer) + "}"
        found = parse(boxed, _TARGETS, parsing_timeout=None)  # pyright: ignore[reportArgumentType]
        if any(not isinstance(item, str) for item in found):
            return tuple(found)
    return tuple(parse(answer, _TARGETS, parsing_timeout=None))  # pyright: ignore[reportArgumentType]
