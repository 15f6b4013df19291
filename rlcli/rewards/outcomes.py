"""Converts return values of reward functions to a score and its parts."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from rlcli.rewards.rules.explained import Explained
from rlcli.rewards.rules.undecided import Undecided

TOTALS = ("score", "reward")
"""Keys of a dict's score, the first one present counts."""


class NotANumber(Exception):
    """A reward function returned a value that cannot be used as a score."""


class NoOpinion(NotANumber):
    """A reward function returned None, which leaves the response to a judge if there is one."""


def read_outcome(outcome: Any) -> dict[str, Any]:
    """The return value of a reward as {"score": float | None, "parts": {name: float}}.

    The score of a dict is its entry `score`, else `reward`, else its only number. Its other numbers
    are parts; all other entries are ignored. True and False are 1.0 and 0.0. A rule may add a
    "reason".

    Raises:
        NotANumber: the value is not a finite number or a dict of finite numbers.
        NoOpinion: the value is None.
    """
    if isinstance(outcome, Undecided):
        return {"score": 0.0, "parts": {}, "undecided": True}
    if not isinstance(outcome, Mapping):
        score = _number(outcome)
        if score is None:
            problem = NoOpinion if outcome is None else NotANumber
            raise problem(
                f"the reward returned {shown(outcome)}, expected a number, True or False, "
                "or a dict with 'score'"
            )
        reason = {"reason": outcome.reason} if isinstance(outcome, Explained) else {}
        return {"score": _finite("the reward", score), "parts": {}, **reason}
    found = {str(name): _number(value) for name, value in outcome.items()}
    if "score" in found and found["score"] is None:
        raise NotANumber(f"'score' is {shown(outcome['score'])}, expected a number")
    values = {name: _finite(name, value) for name, value in found.items() if value is not None}
    if not values:
        raise NotANumber(f"the reward returned a dict without numbers: {shown(outcome)}")
    total = next((name for name in TOTALS if name in values), None)
    if total is None and len(values) == 1:
        (total,) = values
    score = None if total is None else values[total]
    values.pop("score", None)
    return {"score": score, "parts": values}


def only_item(scores: Any) -> Any:
    """The only score in the list returned by a function that takes lists.

    Raises: NotANumber if it is not a list with one score.
    """
    if hasattr(scores, "tolist"):
        scores = scores.tolist()
    if not isinstance(scores, list | tuple):
        raise NotANumber(f"the reward returned {shown(scores)}, expected a list of scores")
    if len(scores) != 1:
        raise NotANumber(f"the reward returned {len(scores)} scores for 1 response")
    (item,) = scores
    return item[0] if isinstance(item, list) and len(item) == 1 else item


def shown(value: Any) -> str:
    """Type and value for messages, at most 120 characters."""
    return f"{type(value).__name__} {value!r}"[:120]


def _number(value: Any) -> float | None:
    """Numbers and booleans of Python, numpy and torch as float; None for anything else."""
    if getattr(value, "shape", None) in ((), (1,)):
        value = value.item()
    return float(value) if isinstance(value, numbers.Real | Decimal) else None


def _finite(name: str, value: float) -> float:
    if not math.isfinite(value):
        raise NotANumber(f"{name} is {value}, expected a finite number")
    return value
