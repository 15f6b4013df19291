"""The judge as a `Scorer`: an event loop in a thread of its own, fed while sampling goes on."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import threading
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlcli.config.rewards import JudgeConfig
from rlcli.errors import Paused
from rlcli.rewards.judge.budget import Budget, BudgetSpent, Ledger, price_of
from rlcli.rewards.judge.cache import Kept, open_cache
from rlcli.rewards.judge.call import Verdict
from rlcli.rewards.judge.canaries import due_answers
from rlcli.rewards.judge.check import cure
from rlcli.rewards.judge.client import access_of
from rlcli.rewards.judge.counters import Tally
from rlcli.rewards.judge.faults import OUTAGES, Fault, Kind
from rlcli.rewards.judge.panel_member import Member, choose, median_of
from rlcli.rewards.judge.parse_reply import is_degenerate
from rlcli.rewards.judge.providers import members_of
from rlcli.rewards.judge.send_pacing import Turns
from rlcli.rewards.judge.templates import Template, load_template, render, values_of
from rlcli.types import Prompt, Reward, Rollout, StepRecord

PART = "judge"
"""The name under which the score is logged."""
CLOSE_S = 5.0
"""Seconds that each part of closing may take."""
CACHE = "judge_cache.sqlite"
LEDGER = "judge_spent.txt"
"""US dollars, in the run's directory."""
MAX_REASON = 500
"""Characters of a judge's reason that are kept."""


class JudgeScorer:
    """A `Scorer` that asks a language model, or one of several for each prompt.

    Scores are mapped from the template's scale to 0..1. run_dir: where verdicts are kept while
    reward.judge.cache is `run`, and what was spent; None: there is no run. template: None: the
    one that the settings name.

    Raises:
        RewardError: the settings or the environment lack something; `check_judge` finds it sooner.
    """

    def __init__(
        self,
        config: JudgeConfig,
        *,
        env: Mapping[str, str],
        lang: str = "en",
        run_dir: Path | None = None,
        template: Template | None = None,
    ) -> None:
        self._config = config
        self._template = template or load_template(config, lang=lang)[0]
        self._secret = secrets.token_bytes(16)
        self._verdicts: dict[tuple[str, ...], asyncio.Task[Any]] = {}
        self._told: set[Member] = set()
        self._turns = Turns(apart=0)
        self._end: Paused | None = None
        self._lock = threading.Lock()
        self._is_closed = False
        self._tally = Tally()
        judges = [(one, access_of(one, env), price_of(one)) for one in members_of(config)]
        has_price = any(price for _, _, price in judges)
        self._ledger = Ledger(run_dir / LEDGER) if run_dir and has_price else None
        self._budget = Budget(max_usd=config.max_cost, price=None, ledger=self._ledger)
        self._members = [
            Member(
                access,
                self._template,
                config=one,
                budget=self._budget.priced(price),
                tally=self._tally,
            )
            for one, access, price in judges
        ]
        self._cache = open_cache(config.cache, run_file=run_dir and run_dir / CACHE)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="judge", daemon=True)
        self._thread.start()

    @property
    def spent_usd(self) -> float:
        """Dollars spent so far, those of the run before included; 0 where no price is known."""
        return self._budget.spent_usd

    def submit(self, rollout: Rollout, *, before: Reward | None = None) -> Future[Reward]:
        """Begin to score one rollout; returns at once.

        The future raises Paused when no call can help any more: a refused key, a spent budget.
        """
        return self._start(self._score(rollout))

    def canaries(self, step: int, prompts: Sequence[Prompt]) -> list[Future[Reward]]:
        """Known bad answers being judged afresh, every reward.judge.canary_every steps from 0."""
        due = due_answers(self._config.canary_every, step, prompts)
        return [self.submit_afresh(one) for one in due]

    def submit_afresh(self, rollout: Rollout) -> Future[Reward]:
        """Begin to score an answer for which nothing that was said before counts."""
        return self._start(self._judge(self._values(rollout), is_kept=False))

    def normalize(self, rewards: Sequence[Reward], *, update_stats: bool) -> list[Reward]:
        """The rewards as they are."""
        return [*rewards]

    def trouble(self) -> str | None:
        """A member that does not answer, or asks to wait."""
        for member in self._members:
            trouble = member.trouble()
            if trouble is None:
                self._told.discard(member)
            elif member not in self._told:
                self._told.add(member)
                return trouble
        return None

    def metrics(self) -> StepRecord:
        """What the calls came to since the last time, and where limits stand now."""
        found = self._tally.drain()
        found.setdefault("judge/dedup_hits", 0.0)
        if self._cache is not None:
            found.setdefault("judge/cache_hits", 0.0)
            found |= {"judge/cache_lost": 1.0} if self._cache.is_lost else {}
        found["judge/concurrency"] = float(sum(one.limiter.limit for one in self._members))
        left_usd = self._budget.left_usd
        if left_usd is not None:
            found["judge/budget_left_usd"] = left_usd
        return found

    def can_recover(self, unscored: Reward) -> bool:
        """A judge comes back; a content filter says the same every time."""
        return can_come_back(unscored)

    def state(self) -> dict[str, Any]:
        """Dollars spent, with what calls under way may cost."""
        return {"spent_usd": self._budget.committed_usd}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """What was spent before counts against reward.judge.max_cost, and what is since."""
        self._budget.carry(float(state.get("spent_usd", 0.0)))

    def close(self) -> None:
        """Cancel what is being scored and stop the thread."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=3 * CLOSE_S)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            if tasks:
                self._finish(asyncio.wait(tasks))
            for member in self._members:
                self._finish(member.connection.close())
            self._finish(self._loop.shutdown_asyncgens())
        finally:
            self._loop.close()
            if self._cache is not None:
                self._cache.close()
            if self._ledger is not None:
                self._ledger.close()

    def _finish(self, work: Coroutine[Any, Any, Any]) -> None:
        with suppress(Exception):  # nothing that fails while closing may hide why it is closed
            self._loop.run_until_complete(asyncio.wait_for(work, CLOSE_S))

    def _start(self, work: Coroutine[Any, Any, Reward]) -> Future[Reward]:
        with self._lock:
            if self._is_closed:
                work.close()
                raise RuntimeError("the scorer is closed")
            if self._end:
                work.close()
                ended: Future[Reward] = Future()
                ended.set_exception(self._end)
                return ended
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _score(self, rollout: Rollout) -> Reward:
        """The reward of a rollout; equal ones in flight share one verdict, and its price."""
        # of thousands that come at once the first are asked before the last are looked at
        await self._turns.take()
        if is_degenerate(rollout.text):
            return Reward(value=0.0, parts={PART: 0.0})
        values = self._values(rollout)
        key = tuple(values.values())
        first = self._verdicts.get(key)
        try:
            if first is None:
                return await self._score_first(key, values)
            self._tally.add("dedup_hits")
            return replace(await asyncio.shield(first), usage={"shared": 1.0})
        except asyncio.CancelledError:
            raise self._end or asyncio.CancelledError from None

    async def _score_first(self, key: tuple[str, ...], values: Mapping[str, str]) -> Reward:
        """The reward, for which equal ones that come meanwhile wait."""
        task = asyncio.current_task()
        assert task is not None
        self._verdicts[key] = task
        try:
            return await self._judge(values)
        finally:
            del self._verdicts[key]

    def _values(self, rollout: Rollout) -> dict[str, str]:
        prompt = rollout.prompt
        lang = self._template.lang
        return values_of(prompt.messages, rollout.text, prompt.ground_truth, lang=lang)

    async def _judge(self, values: Mapping[str, str], *, is_kept: bool = True) -> Reward:
        """The reward of all votes. is_kept: take votes from the cache if it has them."""
        member = choose(self._members, values["prompt"])
        nonce = self._nonce(values)
        user = render(self._template, values, nonce=nonce)
        # of the text without the nonce, which another process does not know
        plain = user.replace(nonce, "")
        keys = [member.cache_key(plain, i) if is_kept else None for i in range(self._config.votes)]
        votes = [self._vote(member, user, key) for key in keys]
        # one task per response: those that only wait slow the loop down for the others
        verdict = await votes[0] if len(votes) == 1 else median_of(await _together(votes))
        return reward_of(verdict, self._template, member=self._said_of(member))

    async def _vote(self, member: Member, user: str, key: bytes | None) -> Verdict:
        """One verdict, out of the cache where it was given before."""
        kept = self._cache.find(key) if self._cache and key else None
        if kept is not None:
            self._tally.add("cache_hits")
            return verdict_of(kept)
        verdict = await self._ask(member, user)
        is_blocked = verdict.fault is not None and verdict.fault.kind is Kind.BLOCKED
        if self._cache and key and (verdict.score is not None or is_blocked):
            model, reason = one_line(verdict.model), one_line(verdict.reason)
            self._cache.keep(key, Kept(score=verdict.score, reason=reason, model=model))
        return verdict

    async def _ask(self, member: Member, user: str) -> Verdict:
        """Raises: Paused at once where no call can help, before another one starts."""
        if self._end:
            raise self._end
        try:
            return await member.asker.verdict(user)
        except BudgetSpent:
            raise self._pause(self._spent_message(member)) from None
        except Fault as fault:
            in_panel = member is not self._members[0]
            message = (
                f"the judge ({member.name}) answers no more: {fault}.\n"
                f"{cure(fault, member.config, in_panel=in_panel)} Then go on with --resume auto."
            )
            raise self._pause(message) from None

    def _said_of(self, member: Member) -> str:
        """The member's name, where there is more than one."""
        return member.name if len(self._members) > 1 else ""

    def _nonce(self, values: Mapping[str, str]) -> str:
        """A tag nobody can foresee, the same for equal texts so that their calls are equal."""
        text = "\0".join(values.values()).encode()
        return hashlib.blake2b(text, key=self._secret, digest_size=8).hexdigest()

    def _spent_message(self, member: Member) -> str:
        limit = self._config.max_cost or 0.0
        more = 2 * max(limit, self.spent_usd)
        return (
            f"the judge ({member.name}) has spent ${self.spent_usd:.4f} of ${limit:g} "
            "(reward.judge.max_cost); one more call might exceed it.\n"
            f"That stays spent: raise the budget with --max_judge_cost {more:g} --resume auto."
        )

    def _pause(self, message: str) -> Paused:
        """The end of all scoring: what waits and what comes later raises it."""
        with self._lock:
            if self._end is None:
                self._end = Paused(message)
            for task in self._verdicts.values():
                if task is not asyncio.current_task():
                    task.cancel()
        return self._end


def can_come_back(unscored: Reward) -> bool:
    """Whether asking again may help: a content filter says the same every time."""
    return Kind.BLOCKED.value not in (unscored.error or "")


def reward_of(verdict: Verdict, template: Template, *, member: str = "") -> Reward:
    """The verdict as a reward between 0 and 1, or unscored with the fault's text.

    member: of a panel, to be named with its fault.
    """
    usage = {name: value for name, value in verdict.usage.items() if value}
    if verdict.score is None:
        error = f"judge {member}: {verdict.fault}" if member else f"judge: {verdict.fault}"
        is_outage = verdict.fault is not None and verdict.fault.kind in OUTAGES
        return Reward(value=None, error=error, usage=usage, is_outage=is_outage)
    low, high = template.scale
    value = (verdict.score - low) / (high - low)
    reason = one_line(verdict.reason)
    return Reward(value=value, parts={PART: value}, usage=usage, reason=reason)


async def _together(votes: Sequence[Coroutine[Any, Any, Verdict]]) -> list[Verdict]:
    """All votes; where one fails for good, the others are given up."""
    tasks = [asyncio.ensure_future(vote) for vote in votes]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def verdict_of(kept: Kept) -> Verdict:
    """The verdict that was kept. It took no call."""
    fault = Fault(Kind.BLOCKED, "") if kept.score is None else None
    return Verdict(score=kept.score, reason=kept.reason, model=kept.model, fault=fault)


def one_line(text: str | None) -> str | None:
    """A judge's words on one line, cut where they are long; None where it said nothing."""
    shown = "".join(char if char.isprintable() else " " for char in text or "")
    return " ".join(shown.split())[:MAX_REASON] or None
