"""A reward model's scores on a scale of their own: less a mean, in standard deviations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

FLOOR = 1e-6
"""Of a deviation, next to the mean: less is what float32 cannot tell apart, and no spread."""


@dataclass(frozen=True, slots=True)
class Moments:
    """How many numbers there were, their mean, and the sum of their squared distances from it."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @property
    def std(self) -> float:
        """Of the numbers as a whole population; 0 without any."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0

    def merged(self, other: Moments) -> Moments:
        """Those of both together. Source: Chan, Golub, LeVeque 1983, the pairwise update."""
        count = self.count + other.count
        if not self.count or not other.count:
            return self if self.count else other
        away = other.mean - self.mean
        return Moments(
            count,
            self.mean + away * other.count / count,
            self.squares + other.squares + away * away * self.count * other.count / count,
        )

    def scaled(self, value: float) -> float:
        """(value - mean) / std; without a spread, value - mean."""
        has_spread = self.std > FLOOR * max(1.0, abs(self.mean))
        return (value - self.mean) / (self.std if has_spread else 1.0)


def moments_of(values: Sequence[float]) -> Moments:
    """Moments of these numbers, the same to the last bit in whatever order they come."""
    if not values:
        return Moments()
    count, low = len(values), min(values)
    # from the lowest: equal numbers have their own value as mean, and not one a rounding away
    mean = low + math.fsum(value - low for value in values) / count
    return Moments(count, mean, math.fsum((value - mean) ** 2 for value in values))


class Normalizer(Protocol):
    """Says on which scale the scores of a step count."""

    def moments(self, values: Sequence[float], *, update_stats: bool) -> Moments:
        """What to take off and to divide by; `values` are those of the step or evaluation."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        ...

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what was kept."""
        ...


class FixedScale:
    """The same mean and deviation throughout."""

    def __init__(self, mean: float, std: float) -> None:
        self._moments = Moments(1, mean, std * std)

    def moments(self, values: Sequence[float], *, update_stats: bool) -> Moments:
        """Those given."""
        return self._moments

    def state(self) -> dict[str, Any]:
        """Nothing is kept."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Nothing was kept."""


class RunningScale:
    """Mean and deviation of all training scores so far, those of the step included.

    Evaluations count on the scale of the first one: were theirs to run along, a policy that stays
    as good would seem to get worse. name: of the reward model; another one's scores are forgotten.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._seen = Moments()
        self._held_out = Moments()

    def moments(self, values: Sequence[float], *, update_stats: bool) -> Moments:
        """Those of training, or those of evaluations."""
        if update_stats:
            self._seen = self._seen.merged(moments_of(values))
            return self._seen
        if not self._held_out.count:
            self._held_out = moments_of(values)
        return self._held_out

    def state(self) -> dict[str, Any]:
        """Whose scores, and the moments of both."""
        seen, held_out = (
            [moments.count, moments.mean, moments.squares]
            for moments in (self._seen, self._held_out)
        )
        return {"model": self._name, "training": seen, "held_out": held_out}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from the same model's scores; anew where there are none."""
        kept = state if state.get("model") == self._name else {}
        self._seen = Moments(*kept.get("training", ()))
        self._held_out = Moments(*kept.get("held_out", ()))
