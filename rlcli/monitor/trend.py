"""Reading the course of a metric over the last steps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise

from rlcli.types import StepRecord

FIRST_KEPT, LAST_KEPT = 3, 64
"""Steps a judgement may look at: the first, which later ones are compared with, and the last."""


def last_values(steps: Sequence[StepRecord], key: str, count: int) -> list[float]:
    """The last `count` values, or none where a step lacks one or there are too few."""
    values = [step[key] for step in steps[-count:] if key in step]
    return values if len(values) == count else []


def course(steps: Sequence[StepRecord], key: str) -> list[float]:
    """All values of the recent steps in a row."""
    recent = steps[-LAST_KEPT:]
    return [step[key] for step in recent if key in step]


def noise(values: Sequence[float]) -> float:
    """Deviation from step to step, whatever the trend (von Neumann)."""
    return math.sqrt(variance_between_steps(values) or 0.0)


def variance_between_steps(values: Sequence[float]) -> float | None:
    """Half the mean squared difference of neighbours, the square of `noise`; None below two."""
    changes = [later - sooner for sooner, later in pairwise(values)]
    # not **: it raises where the square is too large
    squares = [change * change for change in changes]
    return statistics.fmean(squares) / 2 if squares else None


def is_rising(steps: Sequence[StepRecord], key: str, count: int) -> bool:
    """Whether the later half of the last `count` values is higher by more than chance."""
    values = course(steps, key)[-count:]
    half = len(values) // 2
    if half < 2:
        return False
    gain = statistics.fmean(values[-half:]) - statistics.fmean(values[:half])
    return gain > 2 * noise(values) / math.sqrt(half)
