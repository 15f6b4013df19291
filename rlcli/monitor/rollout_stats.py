"""Statistics of a step's rollouts: length against reward, and reasons for zero scores."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence

from rlcli.run_dir.rollout_files import printable
from rlcli.types import Response, Reward, StepRecord

MIN_ROLLOUTS = 16
"""With fewer, a correlation is mostly chance."""
LONGEST_ERROR = 120
MIN_GOLD = 2
"""Characters below which a reference answer may occur in a response by chance."""


def length_correlation(rollouts: Sequence[Response], rewards: Sequence[Reward]) -> StepRecord:
    """`reward_length_correlation` (Pearson's r) of the scored rollouts; {} if undefined."""
    scored = [
        (float(rollout.num_tokens), reward.value)
        for rollout, reward in zip(rollouts, rewards, strict=True)
        if reward.value is not None and math.isfinite(reward.value)
    ]
    if len(scored) < MIN_ROLLOUTS:
        return {}
    lengths, values = [length for length, _ in scored], [value for _, value in scored]
    if len(set(lengths)) < 2 or len(set(values)) < 2:
        return {}
    try:
        return {"reward_length_correlation": statistics.correlation(lengths, values)}
    except (statistics.StatisticsError, OverflowError):
        return {}  # scores too small or too large to be squared


def zero_facts(rollouts: Sequence[Response], rewards: Sequence[Reward]) -> StepRecord:
    """Shares of the rollouts that explain zero scores; {} unless every score is 0.

    empty_share: no text. gold_share: the text has the reference answer. no_number_share: the
    reference answer is a number and the text has none.
    """
    if any(reward.value != 0.0 for reward in rewards):
        return {}
    golds = [str(rollout.prompt.ground_truth).rpartition("####")[2].strip() for rollout in rollouts]
    texts = [rollout.text for rollout in rollouts]
    both = list(zip(texts, golds, strict=True))
    total = max(1, len(texts))
    without = sum(has_digit(gold) and not has_digit(text) for text, gold in both)
    return {
        "rollouts/empty_share": sum(not text.strip() for text in texts) / total,
        "rollouts/gold_share": sum(len(g) >= MIN_GOLD and g in text for text, g in both) / total,
        "rollouts/no_number_share": without / total,
    }


def common_error(rewards: Sequence[Reward]) -> str:
    """First line of the most frequent reason for unscored rollouts; "" if there is none."""
    reasons = [printable(str(r.error or "").strip()) for r in rewards if r.value is None]
    lines = Counter(reason.split("\n")[0][:LONGEST_ERROR] for reason in reasons if reason)
    return lines.most_common(1)[0][0] if lines else ""


def has_digit(text: str) -> bool:
    """Whether `text` has a digit."""
    return any(char.isdigit() for char in text)
