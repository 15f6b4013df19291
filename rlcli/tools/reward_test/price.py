"""Estimate the judge's calls of a trial and their cost."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle

from rlcli.plan.judge import REPLY_TOKENS
from rlcli.rewards.judge.budget import price_of
from rlcli.rewards.judge.providers import members_of
from rlcli.rewards.judge.templates import Template, load_template, render, values_of
from rlcli.tools.reward_test.planning import TrialPlan
from rlcli.tools.reward_test.rows import Case
from rlcli.tools.reward_test.running import REPEATED

BYTES_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Expected:
    """calls: without tries after a failed one. cost_usd: None where a judge's price is unknown."""

    calls: int
    cost_usd: float | None


def is_price_known(plan: TrialPlan) -> bool:
    """Whether what is spent is the whole cost: no judge, or every one at a known price."""
    judges = members_of(plan.config.reward.judge) if plan.combination.uses("judge") else []
    return all(price_of(one) is not None for one in judges)


def expected(plan: TrialPlan) -> Expected:
    """Calls of a trial to the judge; an upper bound if a rule decides first."""
    judge = plan.config.reward.judge
    template, _ = load_template(judge, lang=plan.config.run.lang)
    again = plan.cases[:REPEATED] * (plan.repeat - 1)
    asked = [*plan.cases, *([] if plan.is_given else plan.cases), *again]
    prices = [price_of(one) for one in members_of(judge)]
    known = [price for price in prices if price is not None]
    cost = 0.0
    for case, price in zip(asked, cycle(known), strict=False):
        cost += price.cost_usd(_tokens(case, template), REPLY_TOKENS) * judge.votes
    is_known = len(known) == len(prices)
    return Expected(len(asked) * judge.votes, cost if is_known else None)


def _tokens(case: Case, template: Template) -> int:
    """Approximate tokens that one call sends."""
    prompt = case.rollout().prompt
    values = values_of(prompt.messages, case.response, prompt.ground_truth, lang=template.lang)
    texts = (template.system, render(template, values, nonce="0"))
    return sum(len(text.encode()) for text in texts) // BYTES_PER_TOKEN
