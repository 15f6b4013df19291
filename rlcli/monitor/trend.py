"""Trend of a metric over the last steps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise

from rlcli.types import StepRecord

FIRST_KEPT, LAST_KEPT = 3, 64
"""Steps that checks may use: the first ones, as a baseline, and the last ones."""


def last_values(steps: Sequence[StepRecord], key: str, count: int) -> list[float]:
    """The last `count` values; empty if a step lacks one or there are too few steps."""
    values = [step[key] for step in steps[-count:] if key in step]
    return values if len(values) == count else []


def recent_values(steps: Sequence[StepRecord], key: str) -> list[float]:
    """The values of the recent steps, oldest first."""
    recent = steps[-LAST_KEPT:]
    return [step[key] for step in recent if key in step]


def noise(values: Sequence[float]) -> float:
    """Standard deviation from step to step, regardless of the trend (von Neumann)."""
    return math.sqrt(variance_between_steps(values) or 0.0)


def variance_between_steps(values: Sequence[float]) -> float | None:
    """Half the mean squared difference of neighbours (`noise` squared); None below 2 values."""
    changes = [later - sooner for sooner, later in pairwise(values)]
    # change * change overflows to inf; ** raises
    squares = [change * change for change in changes]
    return statistics.fmean(squares) / 2 if squares else None


def is_rising(steps: Sequence[StepRecord], key: str, count: int) -> bool:
    """Whether the second half of the last `count` values is higher by more than chance."""
    values = recent_values(steps, key)[-count:]
    half = len(values) // 2
    if half < 2:
        return False
    gain = statistics.fmean(values[-half:]) - statistics.fmean(values[:half])
    return gain > 2 * noise(values) / math.sqrt(half)
