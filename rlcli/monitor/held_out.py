"""Confidence interval of the held-out score, and the check for a falling score."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rlcli.config.schema import Config
from rlcli.monitor.health_checks import HealthVerdict
from rlcli.monitor.trend import LAST_KEPT, is_rising
from rlcli.types import StepRecord

HELD_OUT_FALLING = "held_out_falling"
Z95 = 1.96
LOW_EVALUATIONS = 2
"""Evaluations in a row that must be low, because one in twenty is low by chance."""


@dataclass(frozen=True, slots=True)
class HeldOutScore:
    """Score of one evaluation. half_width: of its 95 % interval."""

    step: int
    score: float
    half_width: float


def half_width(scores_P: Sequence[float], *, is_rate: bool) -> float:
    """Half the width of the 95 % interval of the mean over prompts.

    is_rate: the scores are shares of passed responses. Their interval is Agresti and Coull's
    (1998), which is above 0 even if all fail or all pass. Otherwise the normal interval.
    """
    count = len(scores_P)
    if is_rate:
        total = count + Z95**2
        rate = (math.fsum(scores_P) + Z95**2 / 2) / total
        return Z95 * math.sqrt(rate * (1 - rate) / total)
    return Z95 * statistics.stdev(scores_P) / math.sqrt(count) if count > 1 else math.inf


def read_score(record: StepRecord) -> HeldOutScore | None:
    """The score of an evaluation's metrics; None without a score or an interval."""
    score = record.get("eval/pass@1", record.get("eval/reward_mean"))
    width = record.get("eval/ci95")
    if score is None or width is None:
        return None
    return HeldOutScore(int(record["step"]), score, width)


def held_out_falling(
    scores: Sequence[HeldOutScore], steps: Sequence[StepRecord], config: Config
) -> HealthVerdict | None:
    """The held-out score fell by more than its interval.

    Either twice in a row, or once during a fall in which the training reward rises.
    """
    if len(scores) < LOW_EVALUATIONS + 1:
        return None
    now, recent = scores[-1], scores[-LOW_EVALUATIONS:]
    earlier = scores[:-LOW_EVALUATIONS]
    start, best = earlier[0], max(earlier, key=lambda s: s.score)
    is_falling = scores[-3].score > scores[-2].score > now.score
    if is_falling and _is_below(now, best) and is_rising(steps, "reward_mean", LAST_KEPT):
        says = f"{_fell(best, now)} while the training reward rises: the policy fits the training "
        says += "prompts, or exploits the reward."
    elif all(_is_below(score, best) for score in recent):
        says = f"{_fell(best, now)}, by more than its 95% interval in {LOW_EVALUATIONS} "
        says += "evaluations in a row" + (
            ": the policy is worse than at the start." if best is start else "."
        )
    else:
        return None
    cure = f"Lower train.lr (now {config.train.lr:g})"
    if not config.algorithm.needs_reference:
        cure += " or set algorithm.kl_loss=true"
    return HealthVerdict(
        name=HELD_OUT_FALLING,
        says=says,
        cure=f"{cure}. The checkpoint with the best score is kept: rlcli ckpt list RUN.",
    )


def _is_below(score: HeldOutScore, other: HeldOutScore) -> bool:
    return score.score + score.half_width < other.score


def _fell(best: HeldOutScore, now: HeldOutScore) -> str:
    return (
        f"held-out score fell from {best.score:.3g} (step {best.step}) to {now.score:.3g} "
        f"(step {now.step})"
    )
