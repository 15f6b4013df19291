"""About how many calls and tokens a judge takes, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from rlcli.config.rewards import JudgeConfig
from rlcli.config.schema import Config
from rlcli.plan.needs import needs_of

TEMPLATE_TOKENS = 450
"""Of the instructions around prompt and response."""
REPLY_TOKENS = 100
"""Of a reason in three sentences and a score."""
CANARIES = 3
"""Known bad answers that are judged every reward.judge.canary_every steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgePlan:
    """calls and what follows from them are None where the steps are not known.

    calls_per_step: of the rollouts; `calls` has evaluations (eval_calls) and canaries, too.
    is_most: a rule decides first, and nobody knows how often. price: US dollars per million
    tokens, (in, out), the mean of a panel's; None: one is not known. price_date: of the table;
    None: the price was set.
    """

    model: str
    calls_per_step: int
    calls: int | None
    eval_calls: int | None
    tokens_per_call: int
    tokens: int | None
    cost_usd: float | None
    price: tuple[float, float] | None
    price_date: str | None
    is_most: bool


def plan_judge(
    config: Config, *, steps: int | None, num_val: int | None, prompts: int
) -> JudgePlan | None:
    """What the judge of a run is asked for; None: there is no judge.

    Prompts and responses are taken at their full length, instructions and replies at a usual one;
    tries after a failed call are not counted.

    Raises: RewardError when no model is named and the provider has no default, or for a bad panel.
    """
    judge = config.reward.judge
    if not judge.enabled:
        return None

    from rlcli.rewards.judge.budget import price_date
    from rlcli.rewards.judge.providers import members_of

    greedy = 1 if "greedy" in needs_of(config) else 0
    per_step = prompts * (config.rollout.n + greedy) * judge.votes
    calls = eval_calls = None
    if steps is not None and (num_val is not None or not config.data.val):
        evaluations = num_evaluations(config, steps) if config.data.val else 0
        eval_calls = evaluations * (num_val or 0) * config.rollout.val_n * judge.votes
        calls = per_step * steps + eval_calls + num_canaries(config, steps) * judge.votes
    read = TEMPLATE_TOKENS + config.data.max_prompt_tokens + config.data.max_response_tokens
    members = members_of(judge)
    price = _mean_price(members)
    cost = None
    if price is not None and calls is not None:
        cost = calls * (read * price[0] + REPLY_TOKENS * price[1]) / 1e6
    is_listed = price is not None and not all(one.price for one in members)
    return JudgePlan(
        model=", ".join(str(one.model) for one in members),
        calls_per_step=per_step,
        calls=calls,
        eval_calls=eval_calls,
        tokens_per_call=read + REPLY_TOKENS,
        tokens=None if calls is None else calls * (read + REPLY_TOKENS),
        cost_usd=cost,
        price=price,
        price_date=price_date() if is_listed else None,
        is_most=judge.rule_first,
    )


def judge_notes(config: Config, *, steps: int, num_val: int) -> list[str]:
    """The estimate of a run's calls and cost; none without a judge."""
    prompts = config.train.prompts_per_step
    plan = plan_judge(config, steps=steps, num_val=num_val, prompts=prompts)
    if plan is None or plan.calls is None or plan.tokens is None:
        return []
    whole, share, most = f"{plan.calls:,}", f"{plan.eval_calls:,}", f"{plan.tokens / 1e6:,.1f}"
    if plan.cost_usd is None:
        return [
            f"the judge is called up to {whole} times, {share} of them in evaluations: about "
            f"{most} million tokens at full length."
        ]
    return [
        f"the judge is called up to {whole} times, {share} of them in evaluations: about "
        f"{most} million tokens at full length, ${plan.cost_usd:,.2f}."
    ]


def _mean_price(members: Sequence[JudgeConfig]) -> tuple[float, float] | None:
    """US dollars per million tokens, (in, out), where every judge's price is known."""
    from rlcli.rewards.judge.budget import price_of

    prices = [price for one in members if (price := price_of(one)) is not None]
    if len(prices) < len(members):
        return None
    into = fmean(price.input_usd * 1e6 for price in prices)
    return into, fmean(price.output_usd * 1e6 for price in prices)


def num_canaries(config: Config, steps: int) -> int:
    """Answers, not calls: at the first step and at every reward.judge.canary_every-th after it."""
    every = config.reward.judge.canary_every
    return CANARIES * ((steps - 1) // every + 1) if every and steps else 0


def num_evaluations(config: Config, steps: int) -> int:
    """At the start, every run.eval_every steps, and at the end."""
    every = config.run.eval_every
    between = (steps - 1) // every if every > 0 else 0
    return 2 + between
