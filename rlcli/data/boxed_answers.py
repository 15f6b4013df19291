"""Answers in LaTeX boxes, for the converters that read golds and the rules that grade."""

from __future__ import annotations

import re
from typing import NamedTuple

ALTERNATIVES = frozenset(["or", "and", "either", "maybe", "perhaps", "possibly", "also"])
"""Words between two boxes that leave open which one is the answer."""
CJK_ALTERNATIVES = frozenset("或者和与及以")

MAX_BOXES = 64


class Box(NamedTuple):
    """Where a box stands in its text, and what is in it."""

    start: int
    end: int
    content: str


def boxes(text: str) -> list[Box]:
    """Every `\\boxed{...}` and `\\fbox{...}` with balanced braces, and every `\\boxed x`."""
    found: list[Box] = []
    # A bound, because a text of nothing but unclosed boxes takes quadratic time.
    for mark in list(re.finditer(r"\\(?:boxed|fbox)\s*", text))[-MAX_BOXES:]:
        if found and mark.start() < found[-1].end:
            continue
        if text[mark.end() : mark.end() + 1] == "{":
            end = _closing_brace(text, mark.end())
            content = text[mark.end() + 1 : end]
        else:
            bare = re.compile(r"[^\s${}\\]+").match(text, mark.end())
            end = bare.end() - 1 if bare else None
            content = bare[0].rstrip(".,;") if bare else ""
        if end is not None and content.strip():
            found.append(Box(mark.start(), end + 1, content.strip()))
    return found


def final_boxes(text: str) -> list[str]:
    """What the last box says, or the last boxes where only `or`, `and`, `,` stand between them.

    A box that prose separates from the last one is an earlier attempt and does not count.
    """
    found = boxes(text)
    first = len(found) - 1
    while first > 0 and _leaves_open(text[found[first - 1].end : found[first].start]):
        first -= 1
    return list(dict.fromkeys(box.content for box in found[max(first, 0) :]))


def gold_box(solution: str) -> str:
    """The answer of a reference solution: its last box; `a, b` for boxes joined by `and`.

    Boxes joined by `or` and `=` are one answer written twice in the MATH data set. "" without
    a box.
    """
    found = boxes(solution)
    answers = [box.content for box in found[-1:]]
    for before, after in zip(found[-2::-1], found[:0:-1], strict=False):
        between = solution[before.end : after.start]
        if _words(between) != ["and"] and between.strip(" $") != ",":
            break
        answers.insert(0, before.content)
    return ", ".join(answers)


def _closing_brace(text: str, start: int) -> int | None:
    depth = 0
    for brace in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0 and brace[0] == "}":
            return brace.start()
    return None


def _leaves_open(between: str) -> bool:
    cjk = set(re.findall(r"[\u4e00-\u9fff]", between))
    return len(between) < 80 and set(_words(between)) <= ALTERNATIVES and cjk <= CJK_ALTERNATIVES


def _words(between: str) -> list[str]:
    without_commands = re.sub(r"\\(?!text)[A-Za-z]+", " ", between.replace("\\text", " "))
    return re.findall(r"[A-Za-z]{2,}", without_commands.lower())
