"""Reference answers of a row: one, or several alternatives."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from rlcli.rewards.rules.undecided import InvalidReference, Undecided

ANSWER_KEYS = (
    "answer", "answers", "aliases", "final_answer", "ground_truth", "label", "solution", "target",
    "value",
)  # fmt: skip
"""An object with one of these keys and no other stands for the value of that key."""

_SCALAR = str | int | float


def alternatives(ground_truth: Any, *, reads_json: bool = True) -> list[Any]:
    """The reference answers that a row accepts: usually one.

    A list is several of them, and so is the JSON text of a list of texts if `reads_json`:
    `["12 cm", "12"]`. `[1, 2]` as text is an interval or a list of numbers. An object counts if
    its only key is one of `ANSWER_KEYS`.

    Raises:
        InvalidReference: an object has other keys, a list is empty or nested.
    """
    value = _from_json(ground_truth) if reads_json else ground_truth
    if isinstance(value, Mapping):
        keys = sorted(map(str, value))
        if len(keys) != 1 or keys[0] not in ANSWER_KEYS:
            raise InvalidReference(
                f"ground_truth is an object with {', '.join(keys) or 'no keys'}, expected an "
                f"answer, a list of answers, or an object with one of {', '.join(ANSWER_KEYS)}"
            )
        value = next(iter(value.values()))
    if not isinstance(value, list | tuple):
        if isinstance(value, Mapping):
            raise InvalidReference("ground_truth is an object in an object, expected an answer")
        return [value]
    if not value:
        raise InvalidReference("ground_truth is an empty list")
    bad = [item for item in value if isinstance(item, bool) or not isinstance(item, _SCALAR)]
    if bad:
        raise InvalidReference(
            f"ground_truth is a list with {type(bad[0]).__name__} in it, expected texts or numbers"
        )
    return list(value)


def score_any(
    ground_truth: Any, score: Callable[[Any], float], *, reads_json: bool = True
) -> float:
    """The best score against any reference answer; undecided if none matches and one is undecided.

    Raises:
        InvalidReference: none matches, and at least one cannot be parsed.
    """
    unread: InvalidReference | None = None
    best = 0.0
    for reference in alternatives(ground_truth, reads_json=reads_json):
        try:
            found = score(reference)
        except InvalidReference as error:
            unread = error
            continue
        if found > 0:
            return found
        best = found if isinstance(found, Undecided) else best
    if unread:
        raise unread
    return best


def problem_of_any(
    ground_truth: Any, problem: Callable[[Any], str | None], *, reads_json: bool = True
) -> str | None:
    """Why one of a row's reference answers cannot be graded against; None if all can."""
    try:
        references = alternatives(ground_truth, reads_json=reads_json)
    except InvalidReference as error:
        return str(error)
    return next(filter(None, map(problem, references)), None)


def _from_json(ground_truth: Any) -> Any:
    """JSON text of a list of texts or an object, decoded; any other ground truth unchanged."""
    if not isinstance(ground_truth, str) or ground_truth.lstrip()[:1] not in ("[", "{"):
        return ground_truth
    try:
        value = json.loads(ground_truth)
    except ValueError:
        return ground_truth
    is_texts = isinstance(value, list) and value and all(isinstance(x, str) for x in value)
    return value if is_texts or (isinstance(value, dict) and value) else ground_truth
