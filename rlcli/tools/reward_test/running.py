"""Score responses, some of them several times, within the limits of calls and cost."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlcli.config.rewards import RewardConfig
from rlcli.rewards import PASSED, build_scorer, probe_reward
from rlcli.tools.reward_test.feed import Feed, Progress
from rlcli.tools.reward_test.planning import TrialPlan
from rlcli.tools.reward_test.rows import Case, OtherAnswers
from rlcli.types import Reward

LOG = logging.getLogger(__name__)


REPEATED = 20
"""Number of responses scored more than once."""
TRIES = 3
"""Other answers tried where the rule itself calls them the same as the row's own."""
COMPARING = frozenset({"rules", "gsm8k", "math", "math_reasoning", "choice", "exact"})
"""Values of reward.fn under which a pass says that two answers are the same."""
BATCHES = 256
"""Responses handed over at a time where a reward model scores in batches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What was scored. own: rewards of the plan's cases. others: with another row's answer.

    raw: scores of a reward model before any scale. verdicts: all scores of what was scored several
    times. equal: rows whose rule calls another row's answer the same. num_done: scores that came
    back, repeated ones too. end: what ended it early.
    """

    own: list[Reward]
    others: list[tuple[Case, Reward]]
    raw: list[float]
    verdicts: list[list[float]]
    equal: int
    seconds: list[float]
    wall_s: float
    spent_usd: float
    num_done: int
    end: BaseException | None


def run_trial(
    plan: TrialPlan,
    *,
    env: Mapping[str, str],
    progress: Progress,
) -> Trial:
    """Score every response. A spent budget or Ctrl-C ends the trial early, with partial results.

    Raises: RewardError where the judge, the server or the model is not there.
    """
    reward, lang = plan.config.reward, plan.config.run.lang
    for note in probe_reward(reward, env=env, lang=lang):
        LOG.info(note)
    scorer = build_scorer(reward, env=env, lang=lang, model_dir=plan.reward_dir, device=plan.device)
    begun = time.perf_counter()
    try:
        feed = Feed(scorer, window=in_flight(plan), progress=progress)
        own, others, equal = _score(plan, feed)
        seconds = feed.seconds[_loading(plan, len(feed.seconds)) :]
        scored = [*own, *(reward for _, reward in others)]
        settled = scorer.normalize(scored, update_stats=True)
        spent_usd = float(scorer.state().get("spent_usd", 0.0))
        verdicts: list[list[float]] = []
        if plan.repeat > 1 and plan.combination.uses("judge"):
            verdicts, spent_usd = _ask_again(plan, feed, own, env=env, spent_usd=spent_usd)
        elif plan.repeat > 1:
            first = [(case, reward.value) for case, reward in zip(plan.cases, own, strict=True)]
            verdicts = _again(plan, feed, first)
    finally:
        scorer.close()
    return Trial(
        own=settled[: len(own)],
        others=[(case, now) for (case, _), now in zip(others, settled[len(own) :], strict=True)],
        raw=_raw(plan, scored),
        verdicts=verdicts,
        equal=equal,
        seconds=seconds,
        wall_s=time.perf_counter() - begun,
        spent_usd=spent_usd,
        num_done=len(feed.seconds),
        end=feed.end,
    )


def in_flight(plan: TrialPlan) -> int:
    """Responses scored concurrently."""
    reward, uses = plan.config.reward, plan.combination.uses
    judges = reward.judge.concurrency * (1 + len(reward.judge.panel)) // reward.judge.votes
    is_one_by_one = plan.device is not None and plan.device.type == "cpu"
    return max(
        reward.workers if uses("fn") else 1,
        judges if uses("judge") else 1,
        BATCHES if uses("model") and not is_one_by_one else 1,
    )


def _loading(plan: TrialPlan, count: int) -> int:
    """Number of first timings to drop: one per worker process, which includes loading."""
    is_alone = set(plan.combination.sources.values()) == {"fn"}
    return plan.config.reward.workers if is_alone and count > plan.config.reward.workers else 0


def _score(plan: TrialPlan, feed: Feed) -> tuple[list[Reward], list[tuple[Case, Reward]], int]:
    """(rewards of the cases, those with another row's answer, rows whose first one was equal)."""
    cases = plan.cases
    if plan.is_given:
        return feed.score("scoring", cases), [], 0
    answers = OtherAnswers(cases)
    taken = {at: other for at in range(len(cases)) if (other := answers.next(at)) is not None}
    # side by side: what ends early has as many of one kind as of the other
    pairs = [
        [case, _wrong(cases, at, taken[at])] if at in taken else [case]
        for at, case in enumerate(cases)
    ]
    rewards = iter(feed.score("scoring", [case for pair in pairs for case in pair]))
    scored = [[next(rewards) for _ in pair] for pair in pairs]
    wrong = {at: scored[at][1] for at in taken}
    equal = _try_others(cases, feed, answers, taken, wrong) if _compares(plan) else 0
    others = [(_wrong(cases, at, other), wrong[at]) for at, other in taken.items()]
    return [own for own, *_ in scored], others, equal


def _wrong(cases: Sequence[Case], at: int, other: int) -> Case:
    """Row `at` with the answer of row `other`."""
    return Case(row=cases[at].row, response=cases[other].response, kind="wrong")


def _compares(plan: TrialPlan) -> bool:
    is_alone = set(plan.combination.sources.values()) == {"fn"}
    return is_alone and plan.config.reward.fn in COMPARING


def _try_others(
    cases: Sequence[Case],
    feed: Feed,
    answers: OtherAnswers,
    taken: dict[int, int],
    wrong: dict[int, Reward],
) -> int:
    """Rows whose other answer was the same and gave way to a third: `taken`, `wrong` hold that.

    Two answers are the same where each passes as the other's. A rule that lets everything pass
    does not get away with it: there are a few tries only, and the last one stands.
    """
    tried: dict[int, list[str]] = {}
    suspects = [at for at in taken if _passes(wrong[at])]
    for _ in range(TRIES):
        swapped = [_wrong(cases, taken[at], at) for at in suspects]
        same = [
            at
            for at, reward in zip(suspects, feed.score("comparing", swapped), strict=True)
            if _passes(reward)
        ]
        suspects = []
        for at in same:
            seen = tried.setdefault(at, [])
            seen.append(cases[taken[at]].response)
            other = answers.next(at, seen)
            if other is not None:
                taken[at] = other
                suspects.append(at)
        again = feed.score("scoring", [_wrong(cases, at, taken[at]) for at in suspects])
        wrong.update(zip(suspects, again, strict=True))
        suspects = [at for at in suspects if _passes(wrong[at])]
    return len(tried)


def _passes(reward: Reward) -> bool:
    return reward.value is not None and reward.value >= PASSED


def _raw(plan: TrialPlan, rewards: Sequence[Reward]) -> list[float]:
    """The reward model's raw scores; empty without one."""
    if not plan.combination.uses("model"):
        return []
    name = _part(plan, "model") if plan.combination.is_composite else None
    found = [reward.parts.get(name) if name else reward.value for reward in rewards]
    return [score for score in found if score is not None]


def _part(plan: TrialPlan, wanted: str) -> str:
    return next(name for name, source in plan.combination.sources.items() if source == wanted)


def _ask_again(
    plan: TrialPlan,
    feed: Feed,
    own: Sequence[Reward],
    *,
    env: Mapping[str, str],
    spent_usd: float,
) -> tuple[list[list[float]], float]:
    """(all scores the judge gave, dollars spent in all): it alone is asked, past its cache."""
    config = plan.config.reward
    judge = config.judge.model_copy(update={"cache": "off", "rule_first": False})
    part = _part(plan, "judge")
    judged = [
        (case, reward.parts[part])
        for case, reward in zip(plan.cases, own, strict=True)
        if part in reward.parts
    ]
    alone = RewardConfig(judge=judge, timeout_s=config.timeout_s)
    scorer = build_scorer(alone, env=env, lang=plan.config.run.lang)
    try:
        scorer.load_state({"spent_usd": spent_usd})
        feed.turn_to(scorer)
        verdicts = _again(plan, feed, judged)
        return verdicts, float(scorer.state().get("spent_usd", 0.0))
    finally:
        scorer.close()


def _again(
    plan: TrialPlan, feed: Feed, first: Sequence[tuple[Case, float | None]]
) -> list[list[float]]:
    """All scores of the first responses, that of the first time included."""
    some = first[:REPEATED]
    times = [[score for _, score in some]]
    for _ in range(plan.repeat - 1):
        times.append([reward.value for reward in feed.score("repeating", [c for c, _ in some])])
    return [[score for score in scores if score is not None] for scores in zip(*times, strict=True)]
