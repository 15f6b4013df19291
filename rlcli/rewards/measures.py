"""What a step's rewards say about the judge that gave them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlcli.rewards.combination import PART_OF, combine
from rlcli.rewards.judge.injections import is_injection
from rlcli.rewards.passing import PASSED
from rlcli.types import Response, Reward, StepRecord

if TYPE_CHECKING:
    from rlcli.config.rewards import RewardConfig

BINS = 10
RULE = PART_OF["fn"]


def judge_part(config: RewardConfig) -> str:
    """The name under which a judge's score is kept: rm_score where a composite calls it so."""
    sources = combine(config).sources
    return next(name for name, source in sources.items() if source == "judge")


def measure_judge(
    rollouts: Sequence[Response],
    rewards: Sequence[Reward],
    canaries: Sequence[Reward] = (),
    *,
    part: str = PART_OF["judge"],
) -> StepRecord:
    """`judge/*`: mean, spread and histogram of the scores, and what they go along with.

    Scores are 0 to 1, and the parts of that name. `judge/histogram/0` to `/9` are shares of ten
    equal ranges, the last one with its upper end. `judge/rule_agreement`: share of the rollouts
    that a rule scored as well where both pass or both fail. `judge/length_correlation`: Pearson's,
    of score and response tokens. `judge/injection_rate`: share of the judged responses that speak
    to the judge. `judge/canary_score`: the mean score of known bad answers. What cannot be told is
    left out.
    """
    judged = [
        (reward, rollout)
        for rollout, reward in zip(rollouts, rewards, strict=True)
        if part in reward.parts
    ]
    found = _spread([(reward.parts[part], rollout.num_tokens) for reward, rollout in judged])
    both = [
        (reward.parts[part] >= PASSED) == (reward.parts[RULE] >= PASSED)
        for reward, _ in judged
        if RULE in reward.parts
    ]
    if both:
        found["judge/rule_agreement"] = statistics.fmean(both)
    if judged:
        attempts = [is_injection(rollout.text) for _, rollout in judged]
        found["judge/injection_rate"] = statistics.fmean(attempts)
    known_bad = [reward.value for reward in canaries if reward.value is not None]
    if known_bad:
        found["judge/canary_score"] = statistics.fmean(known_bad)
    return found


def _spread(scored: Sequence[tuple[float, int]]) -> StepRecord:
    """Of (score, tokens) pairs."""
    if not scored:
        return {}
    scores = [score for score, _ in scored]
    lengths = [float(tokens) for _, tokens in scored]
    found = {
        "judge/score_mean": statistics.fmean(scores),
        "judge/score_std": statistics.pstdev(scores),
    }
    for place in range(BINS):
        count = sum(min(int(score * BINS), BINS - 1) == place for score in scores)
        found[f"judge/histogram/{place}"] = count / len(scores)
    if len(set(scores)) > 1 and len(set(lengths)) > 1:
        found["judge/length_correlation"] = statistics.correlation(scores, lengths)
    return found
