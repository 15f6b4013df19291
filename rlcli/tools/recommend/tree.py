"""The guides' tree: which algorithm for which task."""

from __future__ import annotations

from rlcli.tools.recommend.placing import place
from rlcli.tools.recommend.situation import JUDGED, Pick, Situation


def choose(s: Situation) -> list[Pick]:
    """The guides' tree; wishes that only one algorithm meets come first."""
    if s.multi_reward:
        return [
            Pick("gdpo", 8, "every part of the reward is compared within its group by itself: a "
                 "part with a wide spread cannot drown another"),
            Pick("grpo", 8, "one score, the sum of the parts as your function weighs them"),
        ]  # fmt: skip
    if s.pass_at_k:
        return [
            Pick("grpo_passk", 8, "only the best answer of a group counts, which is what pass@k "
                 "measures; pass@1 grows more slowly"),
            Pick("grpo", group_size(s.billions), "raises pass@1, and pass@k along with it"),
        ]  # fmt: skip
    if s.one_answer:
        return _one_answer(s)
    if s.task == "experiment":
        picks = [
            Pick("grpo", 2, "the smallest group there is: the fewest settings and the least time"),
            Pick("rloo", 4, "four answers per prompt make the baseline steadier"),
        ]
        return picks[::-1] if s.stable else picks
    return _judged(s) if s.task in JUDGED else _outcome(s)


def _one_answer(s: Situation) -> list[Pick]:
    whitened = Pick(
        "reinforce_plus_plus", 1, "returns are whitened over the whole batch: no group is needed"
    )
    if critic_fits(s):
        why = "the critic takes the place of the group, and one answer per prompt is enough"
        return [Pick("ppo", 1, why), whitened]
    why = "one sampled answer against the greedy one, which is sampled too: no baseline model"
    return [whitened, Pick("remax", 1, why)]


def _judged(s: Situation) -> list[Pick]:
    group = Pick("grpo", 8, "no critic; more answers per prompt make up for a noisy score")
    if critic_fits(s):
        why = "the critic says which part of a long answer earned the score, and it fits here"
        return [Pick("ppo", 1, why), group]
    steady = Pick("rloo", group_size(s.billions), "the mean of the other answers as baseline")
    return [steady, group] if s.stable else [group, steady]


def _outcome(s: Situation) -> list[Pick]:
    by_size = group_size(s.billions)
    rloo = Pick("rloo", by_size, "an unbiased baseline, no division by a group's small spread")
    if s.stable:
        if critic_fits(s):
            return [Pick("ppo", 1, "the steadiest of all where its critic fits"), rloo]
        return [rloo, Pick("grpo", by_size, "as many answers; divides by the group's spread")]
    if s.long_answers:
        plain = Pick("dr_grpo", 8, "GRPO without its pull towards long wrong answers")
        why = "drops groups that teach nothing and charges for answers near the limit"
        return [Pick("dapo", 16, why), plain] if s.gpus > 1 else [plain, Pick("dapo", 8, why)]
    if s.gpus < 2:
        return [Pick("grpo", 4, "a right answer is all that counts: no critic is needed"), rloo]
    return [Pick("grpo", by_size, "a right answer is all that counts: no critic is needed"), rloo]


def group_size(billions: float) -> int:
    """Answers per prompt: 32 / billions within 8-16 below 3B, 5-8 to 10B, 4-6 above."""
    low, high = (8, 16) if billions < 3 else (5, 8) if billions <= 10 else (4, 6)
    return min(max(round(32 / billions), low), high)


def critic_fits(s: Situation) -> bool:
    """Whether there is a GPU, and room for a critic beside the policy and its reference."""
    return s.gpus > 0 and place(s, Pick("ppo", 1, "")).placement == "whole"
