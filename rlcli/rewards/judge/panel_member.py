"""One judge of a panel, or the only one; and what several votes of it come to."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Sequence

from rlcli.config.rewards import JudgeConfig
from rlcli.rewards.judge import circuit_breaker
from rlcli.rewards.judge.budget import Budget
from rlcli.rewards.judge.call import MAX_TOKENS, Asker, Verdict
from rlcli.rewards.judge.client import Access, verdict_schema
from rlcli.rewards.judge.connect import connect
from rlcli.rewards.judge.counters import Tally
from rlcli.rewards.judge.rate_limiter import RateLimiter
from rlcli.rewards.judge.templates import Template

VOTE_TEMPERATURE = 1.0
"""Votes at temperature 0 would repeat each other. Source: G-Eval (arXiv 2303.16634), n=20 at 1."""
KEY_BYTES = 20


class Member:
    """A judge with its connection, its pace and its price."""

    def __init__(
        self,
        access: Access,
        template: Template,
        *,
        config: JudgeConfig,
        budget: Budget,
        tally: Tally,
    ) -> None:
        temperature = temperature_of(config)
        self.config = config
        self.name = f"{access.provider} {access.model}"
        self.connection = connect(access)
        self.limiter = RateLimiter(concurrency=config.concurrency, rpm=config.rpm, tpm=config.tpm)
        self.asker = Asker(
            self.connection,
            template,
            limiter=self.limiter,
            budget=budget,
            timeout_s=config.timeout_s,
            temperature=temperature,
            tally=tally,
        )
        self._place = f"{access.provider}\n{access.base_url}\n{access.model}".encode()
        schema = verdict_schema(template.scale)
        fixed = json.dumps([temperature, MAX_TOKENS, schema, template.system])
        self._same = hashlib.blake2b(self._place + fixed.encode(), digest_size=KEY_BYTES)

    def cache_key(self, user: str, vote: int) -> bytes:
        """Under which a vote on `user` is kept: of all that could change the answer."""
        key = self._same.copy()
        key.update(f"{vote}\n{user}".encode(errors="surrogatepass"))
        return key.digest()

    def trouble(self) -> str | None:
        """What keeps calls from starting; None while nothing does. From any thread."""
        wait_s = self.limiter.open_at - time.monotonic()
        if wait_s >= 1:
            return f"the judge ({self.name}) has a rate limit: no call for {wait_s:.0f} s."
        if not self.limiter.breaker.is_open:
            return None
        cause, every = self.limiter.breaker.cause, circuit_breaker.BREAK_S
        return f"the judge ({self.name}) does not answer ({cause}): asked again every {every:g} s."

    def claim(self, prompt: str) -> bytes:
        """How much this member wants a prompt. The same in every process."""
        text = f"\n{prompt}".encode(errors="surrogatepass")
        return hashlib.blake2b(self._place + text).digest()


def choose(members: Sequence[Member], prompt: str) -> Member:
    """The member that scores a prompt: always the same, so that no group is mixed.

    The highest claim wins, so that one more member takes prompts over and moves no others.
    """
    return members[0] if len(members) == 1 else max(members, key=lambda one: one.claim(prompt))


def temperature_of(config: JudgeConfig) -> float:
    """0, the likeliest answer; for several votes one at which they can differ."""
    return VOTE_TEMPERATURE if config.votes > 1 else 0.0


def median_of(votes: Sequence[Verdict]) -> Verdict:
    """The median of the votes with a score, where most have one; else the first one's fault.

    The reason is that of the vote nearest to the median; usage is the sum.
    """
    if len(votes) == 1:
        return votes[0]
    usage = {name: sum(vote.usage[name] for vote in votes) for name in votes[0].usage}
    scored = [(vote.score, vote) for vote in votes if vote.score is not None]
    if len(scored) <= len(votes) // 2:
        fault = next(vote.fault for vote in votes if vote.score is None)
        return Verdict(fault=fault, usage=usage)
    median = statistics.median(score for score, _ in scored)
    _, nearest = min(scored, key=lambda pair: abs(pair[0] - median))
    return Verdict(score=median, reason=nearest.reason, model=nearest.model, usage=usage)
