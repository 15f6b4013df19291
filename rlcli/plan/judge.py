"""Estimate a judge's calls, tokens and cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from rlcli.config.rewards import JudgeConfig
from rlcli.config.schema import Config
from rlcli.plan.needs import needs_of

TEMPLATE_TOKENS = 450
"""Tokens of the instructions around prompt and response."""
REPLY_TOKENS = 100
"""Tokens of a reason in three sentences and a score."""
CANARIES = 3
"""Known bad answers judged every reward.judge.canary_every steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgePlan:
    """Calls, tokens and cost; None if the number of steps is unknown.

    calls_per_step: for training rollouts; `calls` adds evaluations (eval_calls) and canaries.
    is_most: the numbers are an upper bound, because a rule decides some answers first. price: US
    dollars per million tokens, (in, out), the mean of a panel; None if any is unknown.
    price_date: date of the price table; None if the price was set.
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
    """The judge's calls, tokens and cost in a run, or None without a judge.

    Prompts and responses count at full length, instructions and replies at a typical length.
    Retries are not counted.

    Raises: RewardError if no model is named and the provider has no default, or for a bad panel.
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
    is_listed = price is not None and not all(member.price for member in members)
    return JudgePlan(
        model=", ".join(str(member.model) for member in members),
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
    """One line with the estimated calls and cost; empty without a judge."""
    prompts = config.train.prompts_per_step
    plan = plan_judge(config, steps=steps, num_val=num_val, prompts=prompts)
    if plan is None or plan.calls is None or plan.tokens is None:
        return []
    calls, evals, millions = f"{plan.calls:,}", f"{plan.eval_calls:,}", f"{plan.tokens / 1e6:,.1f}"
    if plan.cost_usd is None:
        return [
            f"the judge is called up to {calls} times, {evals} of them in evaluations: about "
            f"{millions} million tokens at full length."
        ]
    return [
        f"the judge is called up to {calls} times, {evals} of them in evaluations: about "
        f"{millions} million tokens at full length, ${plan.cost_usd:,.2f}."
    ]


def _mean_price(members: Sequence[JudgeConfig]) -> tuple[float, float] | None:
    """Mean US dollars per million tokens, (in, out); None if any judge's price is unknown."""
    from rlcli.rewards.judge.budget import price_of

    prices = [price for member in members if (price := price_of(member)) is not None]
    if len(prices) < len(members):
        return None
    into = fmean(price.input_usd * 1e6 for price in prices)
    return into, fmean(price.output_usd * 1e6 for price in prices)


def num_canaries(config: Config, steps: int) -> int:
    """Canary answers (not calls) of a run: at step 1, then every reward.judge.canary_every."""
    every = config.reward.judge.canary_every
    return CANARIES * ((steps - 1) // every + 1) if every and steps else 0


def num_evaluations(config: Config, steps: int) -> int:
    """Evaluations of a run: at the start, every run.eval_every steps, and at the end."""
    every = config.run.eval_every
    between = (steps - 1) // every if every > 0 else 0
    return 2 + between
