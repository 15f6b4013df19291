"""Unbiased pass@k from n responses per prompt, and its confidence interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

RESAMPLES = 10_000
LEVEL = 0.95
METHOD = f"percentile bootstrap over prompts, {RESAMPLES} resamples"


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased probability that at least one of k responses passes, if c of n pass.

    1 - C(n-c, k) / C(n, k) in whole numbers, so that nothing is lost to rounding.
    Source: Chen et al. 2021 (arXiv:2107.03374), equation 1.
    """
    assert 0 <= c <= n
    assert 1 <= k <= n
    all_ways = math.comb(n, k)
    return (all_ways - math.comb(n - c, k)) / all_ways


def confidence_interval(scores: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean, by percentile bootstrap; the same scores give the same.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """
    values_P = torch.tensor(scores, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    rows = max(1, min(RESAMPLES, 2**20 // len(scores)))
    means = []
    for start in range(0, RESAMPLES, rows):
        shape = (min(rows, RESAMPLES - start), len(scores))
        means.append(values_P[torch.randint(len(scores), shape, generator=generator)].mean(1))
    tail = (1.0 - LEVEL) / 2
    low, high = torch.cat(means).quantile(torch.tensor([tail, 1.0 - tail], dtype=torch.float64))
    mean = math.fsum(scores) / len(scores)
    return min(float(low), mean), max(float(high), mean)  # rounding, where all scores are alike
