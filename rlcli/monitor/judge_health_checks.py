"""Health checks of a judge: manipulation, scores that do not vary, and unscored rollouts."""

from __future__ import annotations

from collections.abc import Sequence

from rlcli.config.schema import Config
from rlcli.monitor.health_checks import (
    LEVEL_STEPS,
    MEAN_STEPS,
    SAME_SCORES,
    UNSCORED_BY_JUDGE,
    Check,
    HealthVerdict,
    is_for_judge,
    reward_length,
    unscored_share,
)
from rlcli.monitor.trend import last_values
from rlcli.types import StepRecord

MAX_CANARY_SCORE = 0.3
"""Mean canary score when one of three known bad answers gets nearly the full score."""
MAX_INJECTION_RATE = 0.05
"""Above the rate of false positives. A policy that learns to inject soon does it everywhere."""
MAX_LENGTH_CORRELATION = 0.6
LENGTH_STEPS = 5
MIN_AGREEMENT = 0.7
"""Chance level is 0.5."""


def canary(steps: Sequence[StepRecord], config: Config) -> HealthVerdict | None:
    """Known bad answers get high scores."""
    score = steps[-1].get("judge/canary_score", 0.0)
    if score <= MAX_CANARY_SCORE:
        return None
    says = (
        f"known bad answers got {score:.2f} of 1 on average: the judge can be talked round, and "
        "the policy will find out how."
    )
    cure = "Take a stronger reward.judge.model or a stricter reward.judge.prompt."
    if not config.reward.judge.rule_first and not config.reward.composite:
        cure += " Where answers can be compared, reward.judge.rule_first=true asks it less."
    return HealthVerdict(name="judge_canary", says=says, cure=cure)


def injections(steps: Sequence[StepRecord], config: Config) -> HealthVerdict | None:
    """Responses address the judge."""
    rates = last_values(steps, "judge/injection_rate", LEVEL_STEPS)
    if not rates or min(rates) <= MAX_INJECTION_RATE:
        return None
    says = (
        f"{rates[-1]:.0%} of the responses speak to the judge (ask for a score, pose as its "
        "verdict) instead of answering."
    )
    cure = (
        "Read some (rlcli rollouts view --best); where they are paid for, take a stronger "
        "reward.judge.model and go back with --resume STEP."
    )
    return HealthVerdict(name="judge_injections", says=says, cure=cure)


def alike(steps: Sequence[StepRecord], config: Config) -> HealthVerdict | None:
    """The judge's scores do not vary."""
    spreads = last_values(steps, "judge/score_std", MEAN_STEPS)
    if not spreads or max(spreads) >= SAME_SCORES:
        return None
    mean = steps[-1].get("judge/score_mean", 0.0)
    says = f"the judge gives every response the same score ({mean:.2f} of 1) and teaches nothing."
    cure = (
        "Read its reasons (rlcli rollouts view); then describe more steps of the scale in "
        "reward.judge.prompt, or take another reward.judge.model."
    )
    return HealthVerdict(name="judge_alike", says=says, cure=cure)


def length(steps: Sequence[StepRecord], config: Config) -> HealthVerdict | None:
    """The judge rewards length, although other parts keep the total reward from doing so."""
    values = last_values(steps, "judge/length_correlation", LENGTH_STEPS)
    if not values or min(values) <= MAX_LENGTH_CORRELATION or reward_length(steps, config):
        return None
    says = f"the judge's score follows length (r = {values[-1]:.2f}): it pays for longer responses."
    cure = (
        "Say in reward.judge.prompt that length earns nothing; algorithm.overlong_penalty=true "
        "holds against it."
    )
    return HealthVerdict(name="judge_length", says=says, cure=cure)


def agreement(steps: Sequence[StepRecord], config: Config) -> HealthVerdict | None:
    """Judge and rule disagree."""
    shares = last_values(steps, "judge/rule_agreement", MEAN_STEPS)
    if not shares or max(shares) >= MIN_AGREEMENT:
        return None
    says = (
        f"judge and rule pass or fail alike in only {shares[-1]:.0%} of the responses: one of them "
        "is wrong."
    )
    cure = (
        "Read where they differ (rlcli rollouts view, rlcli reward test); then mend reward.fn, "
        "or take another reward.judge.prompt or reward.judge.model."
    )
    return HealthVerdict(name="judge_agreement", says=says, cure=cure)


def unscored(steps: Sequence[StepRecord], config: Config) -> HealthVerdict | None:
    """Too many rollouts without a score from the judge."""
    share = unscored_share(steps, config)
    if share is None or not is_for_judge(steps[-1], config):
        return None
    says = f"the judge leaves {share:.0%} of the rollouts unscored; they are masked out."
    return HealthVerdict(name="unscored", says=says, cure=_unscored_knob(steps[-1], config))


def _unscored_knob(step: StepRecord, config: Config) -> str:
    """The change to make, by the fault that caused most unscored rollouts in this step."""
    judge = config.reward.judge
    counts = {name: step[name] for name in step if name.startswith(UNSCORED_BY_JUDGE)}
    most = max(counts, key=lambda name: counts[name], default="")
    if most.endswith("_blocked"):
        return (
            "A content filter stops them: take another reward.judge.provider or "
            "reward.judge.model, or leave such prompts out of the data."
        )
    if most.endswith("_bad"):
        return (
            "Its replies hold no score: take another reward.judge.model, or a shorter "
            "reward.judge.prompt."
        )
    if most.endswith("_request"):
        return (
            "It refuses the requests, mostly for their length: take a reward.judge.model with more "
            f"room, or lower data.max_response_tokens (now {config.data.max_response_tokens:,})."
        )
    return (
        f"Lower reward.judge.concurrency (now {judge.concurrency}) or set reward.judge.rpm; or "
        f"raise reward.judge.timeout_s (now {judge.timeout_s:g})."
    )


def cache(steps: Sequence[StepRecord], config: Config) -> HealthVerdict | None:
    """The judge's cache can no longer be written."""
    if not steps[-1].get("judge/cache_lost"):
        return None
    says = (
        "the file that keeps the judge's verdicts cannot be read or written; the run goes on "
        "without it, and pays again for what was judged before."
    )
    cure = (
        "Look at the disk; delete judge_cache.sqlite (or the file of reward.judge.cache) before "
        "the run is resumed, or set reward.judge.cache=off."
    )
    return HealthVerdict(name="judge_cache", says=says, cure=cure)


JUDGE_CHECKS: tuple[Check, ...] = (unscored, canary, injections, alike, agreement, length, cache)
