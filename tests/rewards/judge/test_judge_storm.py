"""A storm: three calls of ten fail, in every way of the fault table, in all three wire formats.

Each response says which score it gets, so that a score that is lost, mixed up or made up shows.
"""

from __future__ import annotations

import asyncio
import random
import re
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest
from judge_server import Act, Call

from rlcli.errors import Paused
from rlcli.rewards.base import score_all
from rlcli.rewards.judge import rate_limiter
from rlcli.rewards.judge.budget import find_price
from rlcli.rewards.judge.faults import Fault
from rlcli.types import Reward

HTML = {"content-type": "text/html"}
SHARE = 0.3
TIMEOUT_S = 120.0
SECOND, HOUR, LONGEST_S = 500, 900, 1.5
"""After how many calls a wait of 1 s is asked for, one of an hour; the most that is waited."""

PASSING = (
    *(Act(status=status) for status in (408, 409, 425, 500, 503)),
    Act(status=502, raw=b"<html>bad gateway</html>", headers=HTML),
    Act(status=429, headers={"retry-after-ms": "20"}),
    Act(status=429, error={"error": {"details": [{"retryDelay": "0.02s"}]}}),
    Act(status=529),
    Act(drips=True),
    Act(cuts=True),
    Act(raw=b"<html><body>welcome</body></html>", headers=HTML),
    Act(raw=b"no json"),
    Act(raw=b"{}"),
    Act(error={"error": {"message": "overloaded", "code": 500}}),
)
"""What another call wins, as often as it comes."""
BAD = (
    Act(text=""),
    Act(text="I would rather not say."),
    Act(text='{"reason": "great", "score": 11}'),
    Act(text='{"reason": "yes", "score": true}'),
    Act(text='{"reason": "cut off, sco', finish="length"),
)
"""What one more call wins, once."""
LASTING = {
    0: ("blocked by a content filter", Act(finish="blocked", text="")),
    1: ("no score in the reply", Act(text="never a number")),
    2: ("no answer: 500", Act(status=500)),
}
"""Place of a response among 100 -> what each call for it meets, and the word for it."""


class Watch:
    """A judge's connection: when its calls start, and what ends the time of a call.

    waits: (since when, for how long) it was asked to wait, of those of a second and more.
    """

    def __init__(self, judge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        asker = judge._members[0].asker
        self.starts: list[float] = []
        self.waits: list[tuple[float, float]] = []
        self._connection, asker._connection = asker._connection, self
        self._under_way: dict[str, tuple[asyncio.AbstractEventLoop, asyncio.Timeout]] = {}
        self._times: dict[Any, asyncio.Timeout] = {}
        timeout = asyncio.timeout

        def noted(delay: float | None) -> asyncio.Timeout:
            made = timeout(delay)
            if delay == TIMEOUT_S:
                self._times[asyncio.current_task()] = made
            return made

        monkeypatch.setattr(asyncio, "timeout", noted)

    async def ask(self, request: Any) -> Any:
        """The answer to one call. Raises: Fault."""
        loop = asyncio.get_running_loop()
        response = re.search(r"It is \d+", request.user)
        assert response is not None
        self.starts.append(loop.time())
        self._under_way[response[0]] = loop, self._times.pop(asyncio.current_task())
        try:
            return await self._connection.ask(request)
        except Fault as fault:
            if fault.retry_after_s >= 1:
                self.waits.append((loop.time(), min(fault.retry_after_s, rate_limiter.MAX_WAIT_S)))
            raise

    def end_time_of(self, response: str) -> None:
        """Let the time of the call under way end now, which no call that is well can take."""
        loop, time = self._under_way[response]

        def end() -> None:
            with suppress(RuntimeError):  # it was given up meanwhile
                time.reschedule(loop.time())

        with suppress(RuntimeError):
            loop.call_soon_threadsafe(end)

    def check_waits(self) -> None:
        """No call started while a wait held."""
        for begun, wait_s in self.waits:
            held = [at for at in self.starts if begun < at < begun + wait_s]
            assert held == [], (begun, wait_s)


class Storm:
    """The behaviour of a server, and what it has seen. A drip lasts until the call's time is up."""

    def __init__(self, *, seed: int, price: Any, watch: Watch) -> None:
        self._watch = watch
        self._draw = random.Random(seed)
        self._price = price
        self._calls = 0
        self._had_bad: set[str] = set()
        self.throttled = 0
        self.failed = 0
        self.billed_usd = 0.0

    def __call__(self, call: Call) -> Act:
        self._calls += 1
        act = self._act(call)
        self.throttled += act.status in (429, 529)
        if act.drips:
            threading.Timer(0.1, self._watch.end_time_of, [call.response]).start()
        if act.status == 200:  # it worked, whatever arrives of it
            self.billed_usd += self._price.cost_usd(*act.tokens)
        return act

    def _act(self, call: Call) -> Act:
        for every, asked_s in ((HOUR, 3600), (SECOND, 1)):
            if self._calls % every == every // 2:
                self.failed += 1
                return Act(status=429, headers={"retry-after": str(asked_s)})
        number = int(call.response.split()[-1])
        if number % 100 in LASTING:
            self.failed += 1
            return LASTING[number % 100][1]
        if self._draw.random() < SHARE:
            self.failed += 1
            kinds: Sequence[Act] = PASSING
            if call.response not in self._had_bad and self._draw.random() < 0.3:
                self._had_bad.add(call.response)
                kinds = BAD
            return self._draw.choice(kinds)
        return Act(
            text=f'{{"reason": "r", "score": {score_of(number)}}}',
            has_usage=self._draw.random() < 0.9,
            model=self._draw.choice([None, None, "another-model"]),
            tokens=(self._draw.randrange(900), self._draw.randrange(60)),
        )


def score_of(number: int) -> int:
    return number * 7 % 10 + 1


def check_scores(rewards: Sequence[Reward]) -> None:
    """Every score is the response's own; without one are those that no call could win."""
    for number, reward in enumerate(rewards):
        lasting = LASTING.get(number % 100)
        if lasting:
            assert reward.value is None, number
            assert lasting[0] in (reward.error or "")
        else:
            assert reward.value is not None, (number, reward.error)
            assert round(reward.value * 9) + 1 == score_of(number)


@pytest.mark.parametrize(
    ("provider", "number"),
    [
        *((provider, 400) for provider in ("openai", "gemini", "claude")),
        *(
            pytest.param(provider, 8000, marks=pytest.mark.nightly)
            for provider in ("openai", "gemini", "claude")
        ),
    ],
)
def test_a_storm_loses_no_score_invents_none_and_keeps_to_waits_and_budget(
    provider: str,
    number: int,
    serve: Any,
    scorer: Any,
    settings: Any,
    answer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """10,000 calls and more at night, over 500 at any time, of each wire format."""
    monkeypatch.setattr(rate_limiter, "MAX_WAIT_S", LONGEST_S)
    server = serve(Act())
    price = find_price(provider, settings(server, provider).model)
    judge = scorer(server, provider, concurrency=24, timeout_s=TIMEOUT_S, max_cost=1000.0)
    watch = Watch(judge, monkeypatch)
    storm = server.behave = Storm(seed=number, price=price, watch=watch)
    rewards = score_all(judge, [answer(f"It is {i}") for i in range(number)])
    check_scores(rewards)
    watch.check_waits()
    assert len(watch.waits) >= 2 + number // SECOND + number // HOUR - 2 * (number < SECOND)
    assert storm.failed / len(server.calls) > 0.3
    assert len(server.calls) > 1.3 * number
    assert server.most_in_flight <= 24
    assert 0 < storm.billed_usd <= judge.spent_usd
    found = judge.metrics()
    assert found["judge/throttled"] == storm.throttled
    kinds = ("blocked", "bad", "transient")
    assert [found[f"judge/unscored_{kind}"] for kind in kinds] == [number // 100] * 3


def test_a_call_that_waits_for_money_keeps_to_a_wait_that_begins_meanwhile(
    serve: Any, scorer: Any, answer: Any
) -> None:
    """gpt-4o-mini holds back about $0.0015 a call: $0.002 are enough for one at a time."""
    server = serve(Act())
    judge = scorer(server, max_cost=0.002)
    both_have_a_slot = lambda: judge._members[0].limiter._running == 2  # noqa: E731
    limit = Act(status=429, headers={"retry-after": "1"}, until=both_have_a_slot)
    server.behave = lambda call: limit if len(server.calls) == 1 else Act()
    assert all(r.value is not None for r in score_all(judge, [answer("a"), answer("b")]))
    assert [call.response for call in server.calls[:2]] == ["a", "b"]
    assert server.calls[1].at - server.calls[0].at > 1.0


@pytest.mark.parametrize("provider", ["openai", "gemini", "claude"])
def test_in_a_storm_the_server_never_bills_more_than_the_budget(
    provider: str,
    serve: Any,
    scorer: Any,
    settings: Any,
    answer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = serve(Act())
    price = find_price(provider, settings(server, provider).model)
    assert price is not None
    budget = 12 * price.cost_usd(900, 2048)
    judge = scorer(server, provider, concurrency=24, timeout_s=TIMEOUT_S, max_cost=budget)
    watch = Watch(judge, monkeypatch)
    storm = server.behave = Storm(seed=1, price=price, watch=watch)
    with pytest.raises(Paused, match="max_judge_cost"):
        score_all(judge, [answer(f"It is {i}") for i in range(400)])
    assert 0 < storm.billed_usd <= judge.spent_usd <= budget
    assert len(server.calls) > 12
