"""One verdict out of as many calls as its faults allow."""

from __future__ import annotations

import asyncio
import math
import re
from dataclasses import dataclass, field

from rlcli.rewards.judge.budget import Budget
from rlcli.rewards.judge.circuit_breaker import Patience
from rlcli.rewards.judge.client import MODES, Connection, Reply, Request, verdict_schema
from rlcli.rewards.judge.counters import Tally
from rlcli.rewards.judge.faults import FATAL, Fault, Kind, Outage
from rlcli.rewards.judge.parse_reply import read_verdict
from rlcli.rewards.judge.rate_limiter import RateLimiter, backoff_s
from rlcli.rewards.judge.send_pacing import SENDING, Turns
from rlcli.rewards.judge.templates import Template

TRIES = 5
"""Calls that may end without an answer; as many again while others are answered."""
ROUNDS = 3
DEADLINE_S = 300.0
"""Seconds a verdict may take from the start of its first call: how long rate limits are borne."""
_SYSTEM_ROLE = re.compile(
    r"system[\s_-]?(?:role|message|prompt|instruction)|role\w*\W+system|[\"'`]system[\"'`]|"
    r"developer\s+instruction|roles\s+must\s+alternate|messages\[0\]",
    re.IGNORECASE,
)
MAX_TOKENS = 2048
"""Tokens of a reply, thinking included; twice as many after one that was cut."""


@dataclass(slots=True, kw_only=True)
class Verdict:
    """A score on the template's scale, or the fault that stands for it; and what it took.

    reason: why, in the judge's words, where it said so.
    """

    score: float | None = None
    reason: str | None = None
    fault: Fault | None = None
    model: str | None = None
    usage: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(
            ("calls", "input_tokens", "output_tokens", "cost_usd"), 0.0
        )
    )


@dataclass(slots=True, kw_only=True)
class _CallState:
    """State of one verdict.

    folds_system: whether the next call puts the system prompt into the user message. has_folded:
    whether a call without the system role was tried in this form of reply.
    """

    most_tries: int
    patience: Patience
    mode: int = 0
    deadline: float = math.inf
    tries: int = 0
    rounds: int = 1
    answered_before: int = 0
    was_reminded: bool = False
    was_refused: bool = False
    folds_system: bool = False
    has_folded: bool = False
    max_tokens: int = MAX_TOKENS


class Asker:
    """Asks one judge. Faults are waited out, tried again or told, never turned into a score.

    timeout_s: of one call in all. deadline_s: of a verdict, from the start of its first call.
    """

    def __init__(
        self,
        connection: Connection,
        template: Template,
        *,
        limiter: RateLimiter,
        budget: Budget,
        timeout_s: float,
        deadline_s: float = DEADLINE_S,
        temperature: float = 0.0,
        tally: Tally | None = None,
    ) -> None:
        self.budget = budget
        self._connection = connection
        self._template = template
        self._limiter = limiter
        self._timeout_s = timeout_s
        self._deadline_s = deadline_s
        self._temperature = temperature
        self._tally = tally or Tally()
        self._schema = verdict_schema(template.scale)
        self._turns = Turns(apart=SENDING)
        self._mode = 0
        self._folds_system = False

    async def verdict(self, user: str, *, tries: int = TRIES) -> Verdict:
        """What the judge says to `user`, the rendered scoring prompt.

        Raises:
            Fault: a fatal one: no later call can fare better.
            BudgetSpent: there is no money left for a call.
        """
        verdict = Verdict()
        course = _CallState(
            most_tries=tries,
            patience=Patience(probes=tries, since=asyncio.get_running_loop().time()),
            answered_before=self._limiter.answered,
        )
        while True:
            try:
                reply = await self._call(user, course, verdict.usage)
                verdict.model = reply.model
                verdict.score, verdict.reason = _read(reply, self._template.scale)
            except Fault as fault:
                if fault.kind in FATAL:
                    raise
                verdict.fault = fault
                if await self._goes_on(fault, course):
                    self._tally.add("retries")
                    continue
                self._tally.add(f"unscored_{fault.kind.name.lower()}")
                return verdict
            # Kept for the run only once the laxer form gets an answer: one prompt may be at fault.
            self._mode = max(self._mode, course.mode)
            self._folds_system |= course.folds_system
            verdict.fault = None
            return verdict

    def _request(self, user: str, course: _CallState) -> Request:
        system = self._template.system
        if course.was_reminded:
            user = f"{user}\n\n{self._template.reminder()}"
        if course.folds_system:
            system, user = "", f"{system}\n\n{user}"
        return Request(
            system=system,
            user=user,
            mode=MODES[course.mode],
            schema=self._schema,
            max_tokens=course.max_tokens,
            temperature=self._temperature,
        )

    async def _call(self, user: str, course: _CallState, usage: dict[str, float]) -> Reply:
        """One call, counted. Raises: Fault, BudgetSpent."""
        limiter = self._limiter
        is_first = course.deadline == math.inf
        tokens = (len(self._template.system.encode()) + len(user.encode())) / 4 + 100
        async with limiter.call(
            tokens, first=not is_first, patience=course.patience, deadline=course.deadline
        ) as started:
            if is_first:
                course.deadline = started + self._deadline_s
            # Others may have learnt, while this one waited, which form the server knows.
            course.mode = max(course.mode, self._mode)
            course.folds_system |= self._folds_system
            try:
                reply = await self._paid(self._request(user, course), usage)
            except Fault as fault:
                self._note(fault, started)
                raise
            limiter.note_answer()
        self._tally.latency(asyncio.get_running_loop().time() - started)
        used = (reply.input_tokens, reply.output_tokens)
        if None not in used:
            limiter.count_tokens(tokens, float(sum(count or 0 for count in used)))
        return reply

    def _note(self, fault: Fault, started: float) -> None:
        """Let the limiter know of a call that failed."""
        if fault.kind is Kind.TRANSIENT:
            self._limiter.hold(fault.retry_after_s)
            if self._limiter.breaker.note_failure(started, fault):
                self._tally.add("breaker_openings")
            return
        self._limiter.breaker.note_answer()
        if fault.kind is Kind.THROTTLE:
            self._tally.add("throttled")
            self._limiter.note_throttle(started, fault.retry_after_s)

    async def _paid(self, request: Request, usage: dict[str, float]) -> Reply:
        """One call within the time it may take, its cost settled however it ends."""
        reserved = await self.budget.reserve(request)
        answer: Reply | None = None
        is_billed = False
        try:
            await self._turns.take()
            # The gate may have closed during the wait for money or a turn.
            await self._limiter.gate()
            is_billed = True  # also when it is cancelled: nobody knows how far it came
            async with asyncio.timeout(self._timeout_s):
                answer = reply = await self._connection.ask(request)
        except TimeoutError:
            text = f"none within {self._timeout_s:g} s (reward.judge.timeout_s)"
            raise Fault(Kind.TRANSIENT, text, is_billed=True) from None
        except Fault as fault:
            is_billed = fault.is_billed
            raise
        finally:
            usage["calls"] += 1
            usage["cost_usd"] += self.budget.settle(reserved, answer, is_billed=is_billed)
        usage["input_tokens"] += reply.input_tokens or 0
        usage["output_tokens"] += reply.output_tokens or 0
        return reply

    async def _goes_on(self, fault: Fault, course: _CallState) -> bool:
        """Whether to call again, after the wait that the fault asks for."""
        if isinstance(fault, Outage):
            return False
        if _refuses_system(fault) and not course.has_folded and not course.folds_system:
            course.folds_system = course.has_folded = True
            return True
        if fault.kind is Kind.THROTTLE:
            if self._limiter.open_at < course.deadline:
                return True
            self._limiter.give_up(fault, since=course.deadline - self._deadline_s)
            return False
        if fault.kind is Kind.BAD:
            again = not course.was_reminded
            course.was_reminded = True
            course.max_tokens = MAX_TOKENS * 2 if fault.was_cut else course.max_tokens
            return again
        if fault.kind is Kind.REQUEST:
            return _relaxes(course, fault)
        return fault.kind is Kind.TRANSIENT and await self._waits(course)

    async def _waits(self, course: _CallState) -> bool:
        """Wait after a call without an answer; returns whether to call again."""
        course.tries += 1
        if course.tries >= course.most_tries:
            was_answering = self._limiter.answered > course.answered_before
            if not was_answering or course.rounds >= ROUNDS:
                return False
            course.answered_before = self._limiter.answered
            course.rounds, course.tries = course.rounds + 1, 0
        wait_s = backoff_s(course.tries)
        next_at = max(asyncio.get_running_loop().time() + wait_s, self._limiter.open_at)
        if next_at > course.deadline:
            return False
        await asyncio.sleep(wait_s)
        return True


def _relaxes(course: _CallState, fault: Fault) -> bool:
    """Switch `course` to the next laxer form of call; returns whether there was one left."""
    if _refuses_system(fault):  # folding the prompt did not help, so the role was not the reason
        course.folds_system = False
    if course.mode + 1 < len(MODES):
        course.mode += 1
        return True
    # Try the laxest form twice: gateways also refuse by mistake.
    if not course.was_refused:
        course.was_refused = True
        return True
    again = not course.has_folded
    course.folds_system = course.has_folded = True
    return again


def _refuses_system(fault: Fault) -> bool:
    """Whether an error seems to be about the system role (its message may quote a response)."""
    refused = fault.kind is Kind.REQUEST or (fault.kind is Kind.TRANSIENT and fault.status >= 500)
    return refused and _SYSTEM_ROLE.search(fault.text) is not None


def _read(reply: Reply, scale: tuple[int, int]) -> tuple[float, str | None]:
    """(score, reason) of a reply. Raises: Fault when it gives no score."""
    if reply.finish == "blocked":
        raise Fault(Kind.BLOCKED, "")
    if reply.finish == "length":
        raise Fault(Kind.BAD, "it was cut by its length", was_cut=True)
    score, reason = read_verdict(reply.text, scale)
    if score is None:
        excerpt = " ".join(reply.text.split())[:120]
        raise Fault(Kind.BAD, repr(excerpt) if excerpt else "it is empty")
    return score, reason
