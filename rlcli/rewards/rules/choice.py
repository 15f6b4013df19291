"""Grades answers to multiple-choice questions by their letter."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rlcli.data.boxed_answers import boxes, final_boxes
from rlcli.rewards.rules.answers import after_thinking, marked_answers, stated_answers, with_opening
from rlcli.rewards.rules.numbers import fold
from rlcli.rewards.rules.references import alternatives
from rlcli.rewards.rules.undecided import InvalidReference, Undecided

LETTERS = "ABCDEFGHIJ"
TAIL_LINES = 3
"""Lines at the end of a response in which a letter that nothing announces is looked for."""

_WRAPPING = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\{([^{}]*)\}|[$*_`]|\\[()\[\]]")
_LABEL = re.compile(
    r"\s*(?:(?:the\s+)?(?:option|choice|letter)|选项?|选择)?\s*[(\[]?"
    r"(?:([A-J])|([a-j])(?=[)\].:]|\s*$))(?![A-Za-z'\d])(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
_GOES_ON = re.compile(
    r"\s*$|[)\].:,;。]|\s*[-=(（]|\s*(?:because|since|as|which|so)\b"
    r"|(?!(?:选?项)?[也都是]?(?:不|错|有误|误))[^\x00-\x7f]"
    r"|\s*is\s+(?:the\s+)?(?:correct|right|best|answer)\b"
)
"""What may follow a letter that is an answer: a dog is none."""
_OTHER = re.compile(
    r"[)\]]?\s*(?:,|/|&|\+|、|\bor\b|\band\b|或者?|和|与)\s*(?:option\s*)?[(\[]?[A-J](?![A-Za-z'])",
    re.IGNORECASE,
)
_NAMED = re.compile(
    r"\b(?:correct|right|best)\s+(?:option|choice|one|letter)\s*(?:is\b|:)+\s*([^\n]*)"
    r"|(?:^|\b(?:so|hence|therefore|thus)\b,?)[\s*]{0,20}((?:option|choice)\s{0,20}\(?[A-J]\)?)[\s*]{1,20}"
    r"is\s+(?:the\s+)?(?:correct|right|best)\b",
    re.IGNORECASE | re.MULTILINE,
)


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
) -> float:
    """1.0 when the response's final letter is the gold's, else 0.0; undecided without one.

    Where `extra_info` has `choices`, the text of a choice stands for its letter.

    Raises:
        InvalidReference: the gold is no choice.
    """
    choices = _texts((extra_info or {}).get("choices"))
    gold = parse_gold(ground_truth, choices)
    if gold is None:
        raise InvalidReference(reference_problem(ground_truth, extra_info))
    chosen = final_choice(with_opening(solution_str, extra_info), choices)
    return Undecided() if chosen is None else float(chosen == gold)


def reference_problem(ground_truth: Any, extra_info: Mapping[str, Any] | None = None) -> str | None:
    """Why this reference answer cannot be graded against; None when it can."""
    if parse_gold(ground_truth, _texts((extra_info or {}).get("choices"))) is not None:
        return None
    try:
        found = alternatives(ground_truth)
    except InvalidReference as error:
        return str(error)
    if len(found) > 1:
        return f"ground_truth is {len(found)} choices, expected one: several are not graded"
    return f"ground_truth {str(ground_truth)[:60]!r} is not a choice, such as B or (B)"


def parse_gold(ground_truth: Any, choices: Sequence[str] = ()) -> str | None:
    """The letter of `B`, `(b)`, `B. Paris`, an index from 0, or the text of a choice.

    None if several references name different letters: a list may mean that all of them are right.
    """
    try:
        letters = {_gold_letter(reference, choices) for reference in alternatives(ground_truth)}
    except InvalidReference:
        return None
    return letters.pop() if len(letters) == 1 else None


def _gold_letter(reference: Any, choices: Sequence[str]) -> str | None:
    if isinstance(reference, int) and not isinstance(reference, bool):
        return LETTERS[reference] if 0 <= reference < len(LETTERS) else None
    return _letter(str(reference), choices)


def final_choice(response: str, choices: Sequence[str] = ()) -> str | None:
    """The letter a response ends with; None when it names none, or several.

    Looked for in this order: the last of boxes, `#### B` and `<answer>`; "the answer is B",
    "故选B"; a line by itself at the end.
    """
    text = fold(after_thinking(response)).strip()
    strong = [*marked_answers(text)]
    if found := boxes(text):
        strong.append((found[-1].end, " or ".join(final_boxes(text))))
    if strong:
        return _letter(max(strong)[1], choices)
    named = [first or second for first, second in _NAMED.findall(text)]
    for statement in [*stated_answers(text), *reversed(named)]:
        if letter := _letter(statement, choices):
            return letter
        if _OTHER.search(statement):
            return None
    lines = [line for line in text.splitlines() if line.strip()][-TAIL_LINES:]
    letters = [letter for line in lines if (letter := _letter(line, choices))]
    return letters[0] if len(set(letters)) == 1 else None


def _letter(statement: str, choices: Sequence[str]) -> str | None:
    """The one letter that a statement begins with, or whose choice it spells out."""
    plain = _WRAPPING.sub(lambda match: match[1] or "", statement).strip()
    bare = plain.rstrip(" .。").casefold()
    for letter, choice in zip(LETTERS, choices, strict=False):
        if bare == choice.strip().rstrip(".").casefold():
            return letter
    match = _LABEL.match(plain)
    if match is None or not _GOES_ON.match(match["rest"]) or _OTHER.match(match["rest"]):
        return None
    return (match[1] or match[2]).upper()


def _texts(choices: Any) -> list[str]:
    """The texts of `["4", "5"]` or of `{"text": ["4", "5"], "label": ["A", "B"]}`."""
    found = choices.get("text") if isinstance(choices, Mapping) else choices
    return [str(text) for text in found] if isinstance(found, Sequence) else []
