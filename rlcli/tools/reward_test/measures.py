"""Measures of score quality: AUC, agreement, rank correlation."""

from __future__ import annotations

import bisect
import itertools
import math
import statistics
from collections.abc import Sequence


def auc(labels: Sequence[float], scores: Sequence[float]) -> float | None:
    """Chance that the one of two with the higher label has the higher score; None: all alike.

    A tie of scores counts one half; pairs with equal labels do not count. With two labels it is
    the area under the ROC curve, Mann and Whitney's U over the number of pairs.
    """
    known = sorted(set(scores))
    counts = _Counts(len(known))
    pairs = won = 0.0
    ordered = sorted(zip(labels, scores, strict=True))
    for _, group in itertools.groupby(ordered, key=lambda pair: pair[0]):
        ranks = [bisect.bisect_left(known, score) for _, score in group]
        pairs += counts.total * len(ranks)
        for rank in ranks:
            below, up_to = counts.before(rank), counts.before(rank + 1)
            won += below + (up_to - below) / 2
        for rank in ranks:
            counts.add(rank)
    return won / pairs if pairs else None


class _Counts:
    """How many values lie below a rank, in a binary indexed tree."""

    def __init__(self, size: int) -> None:
        self._tree = [0] * (size + 1)
        self.total = 0

    def add(self, rank: int) -> None:
        self.total += 1
        at = rank + 1
        while at < len(self._tree):
            self._tree[at] += 1
            at += at & -at

    def before(self, rank: int) -> int:
        found = 0
        while rank > 0:
            found += self._tree[rank]
            rank -= rank & -rank
        return found


def spearman(labels: Sequence[float], scores: Sequence[float]) -> float | None:
    """Correlation of ranks, ties at their mean rank; None where one side is all alike."""
    if len(set(labels)) < 2 or len(set(scores)) < 2:
        return None
    return statistics.correlation(mean_ranks(labels), mean_ranks(scores))


def mean_ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1; equal values share the mean of theirs."""
    ordered = sorted(values)
    return [
        (bisect.bisect_left(ordered, value) + 1 + bisect.bisect_right(ordered, value)) / 2
        for value in values
    ]


def agreement(labels: Sequence[float], passes: Sequence[bool]) -> float | None:
    """Share of labels (1 or 0) that agree with the reward; None without labels."""
    if not labels:
        return None
    return statistics.fmean(
        (label == 1) == passed for label, passed in zip(labels, passes, strict=True)
    )


def quantile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that `share` of all do not exceed."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def mean(values: Sequence[float]) -> float | None:
    """Mean; None for no values."""
    return math.fsum(values) / len(values) if values else None


def repeatability(verdicts: Sequence[Sequence[float]]) -> tuple[float, float] | None:
    """(share of responses that get one score every time, largest difference of any)."""
    several = [scores for scores in verdicts if len(scores) > 1]
    if not several:
        return None
    spreads = [max(scores) - min(scores) for scores in several]
    return statistics.fmean(spread == 0 for spread in spreads), max(spreads)
