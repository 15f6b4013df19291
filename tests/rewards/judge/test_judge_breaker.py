"""A judge that does not answer is left alone, and asked by one call at a time if it is back."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
from judge_server import Act, Call
from virtual_time import run_at_once

from rlcli.rewards.base import score_all
from rlcli.rewards.judge import call, circuit_breaker, rate_limiter
from rlcli.rewards.judge.circuit_breaker import FAILURES, Breaker, Patience
from rlcli.rewards.judge.faults import Fault, Kind, Outage
from rlcli.rewards.judge.rate_limiter import RateLimiter

GONE = Fault(Kind.TRANSIENT, "503 gone")
EIGHT = 7 / 9
SECONDS = (
    circuit_breaker.BREAK_S,
    rate_limiter.COOLDOWN_S,
    rate_limiter.MAX_WAIT_S,
    call.DEADLINE_S,
)
"""As they are without the haste of tests."""


def test_its_numbers_are_those_of_the_fault_table() -> None:
    assert SECONDS == (30.0, 15.0, 120.0, 300.0)
    assert (FAILURES, call.TRIES) == (10, 5)
    assert (rate_limiter.START_CONCURRENCY, rate_limiter.SHRINK) == (8, 0.8)


def patience(probes: int) -> Patience:
    return Patience(probes=probes, since=asyncio.get_running_loop().time())


def opened() -> Breaker:
    made = Breaker()
    now = asyncio.get_running_loop().time()
    assert [made.note_failure(now, GONE) for _ in range(10)] == [False] * 9 + [True]
    return made


def test_ten_failures_in_a_row_open_it_and_an_answer_between_starts_the_count_again() -> None:
    async def run() -> None:
        made = Breaker()
        for _ in range(30):
            for _ in range(9):
                made.note_failure(0.0, GONE)
            made.note_answer()
        assert (made.is_open, made.openings) == (False, 0)
        assert opened().is_open

    run_at_once(run())


def test_one_call_is_the_probe_and_its_answer_lets_all_others_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(circuit_breaker, "BREAK_S", 0.1)

    async def run() -> None:
        made, loop = opened(), asyncio.get_running_loop()
        begun = loop.time()
        wait = partial(made.wait, patience(5), deadline=begun + 60)
        waits = [asyncio.ensure_future(wait()) for _ in range(20)]
        done, held = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        assert loop.time() - begun == pytest.approx(0.1)
        assert [task.result() for task in done] == [True]
        await asyncio.sleep(0.2)
        assert not any(task.done() for task in held)
        made.note_answer()
        assert await asyncio.gather(*held) == [False] * 19

    run_at_once(run())


def test_a_failed_probe_holds_all_again_and_each_gives_up_after_its_tries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(circuit_breaker, "BREAK_S", 0.1)

    async def run() -> None:
        made, loop = opened(), asyncio.get_running_loop()
        begun, causes = loop.time(), set[str]()

        async def probe_until_given_up(probes: int) -> float:
            mine = patience(probes)
            while True:
                try:
                    is_probe = await made.wait(mine, deadline=begun + 60)
                except Outage as outage:
                    causes.add(str(outage))
                    return loop.time() - begun
                assert is_probe
                made.note_failure(loop.time(), GONE)
                made.end_probe()

        ends = await asyncio.gather(*(probe_until_given_up(n) for n in (1, 1, 3)))
        assert ends == pytest.approx([0.1, 0.1, 0.3])
        assert causes == {"no answer: 503 gone"}
        assert made.openings == 1

    run_at_once(run())


def test_calls_under_way_when_it_opened_say_nothing_new() -> None:
    async def run() -> None:
        made = opened()
        assert not made.note_failure(0.0, GONE)
        assert not made._is_over(Patience(probes=1, since=0.0))

    run_at_once(run())


def test_a_deadline_ends_the_wait() -> None:
    async def run() -> None:
        made, now = opened(), asyncio.get_running_loop().time()
        with pytest.raises(Outage):
            await made.wait(patience(5), deadline=now + 0.01)

    run_at_once(run())


def test_a_probe_that_is_given_up_leaves_its_place_to_another() -> None:
    async def run() -> None:
        steer, loop = RateLimiter(concurrency=1, rpm=None, tpm=None), asyncio.get_running_loop()
        for _ in range(10):
            steer.breaker.note_failure(loop.time(), GONE)

        async def call() -> None:
            async with steer.call(1.0, first=False, patience=patience(5)):
                await asyncio.sleep(0.0 if steer.answered else 30.0)
                steer.note_answer()

        first = asyncio.ensure_future(call())
        await asyncio.sleep(0.1)
        steer.answered = 1
        others = [asyncio.ensure_future(call()) for _ in range(3)]
        await asyncio.sleep(0.1)
        assert not any(task.done() for task in others)
        first.cancel()
        await asyncio.gather(*others)
        assert not steer.breaker.is_open

    run_at_once(run())


def test_a_judge_that_comes_back_costs_no_score(
    serve: Any, scorer: Any, answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails 8 calls at once, then 2 or more, then 3 probes: fewer than 5 tries of any."""
    monkeypatch.setattr(circuit_breaker, "BREAK_S", 0.3)
    failed: list[float] = []

    def behave(call: Call) -> Act:
        if len(judge._members[0].limiter.breaker._probes_failed_at) == 3:
            return Act()
        failed.append(call.at)
        return Act(status=503)

    server = serve(Act())
    judge = scorer(server)
    server.behave = behave
    rewards = score_all(judge, [answer(f"It is {i}.") for i in range(60)])
    assert [reward.value for reward in rewards] == pytest.approx([EIGHT] * 60)
    # ten open it with up to seven more under way, whose answers say nothing new
    assert 10 + 3 <= len(failed) <= 10 + 7 + 3
    came_back = server.calls[len(failed)].at
    assert min(b - a for a, b in pairwise([*failed[-3:], came_back])) > 0.29


def away(judge: Any, count: int) -> Act:
    """No answer; the first is held until all but those under way wait for their turn."""
    waiting, seen = judge._members[0].limiter._queue, list[bool]()

    def all_wait() -> bool:
        if len(waiting) == count - rate_limiter.START_CONCURRENCY:
            seen.append(True)
        return bool(seen)

    return Act(status=503, until=all_wait)


def test_a_judge_that_stays_away_is_given_up_for_all_at_once(
    serve: Any, scorer: Any, answer: Any
) -> None:
    server = serve(Act())
    judge = scorer(server)
    gone = away(judge, 200)
    server.behave = lambda call: gone
    rewards = score_all(judge, [answer(f"It is {i}.") for i in range(200)])
    assert [reward.value for reward in rewards] == [None] * 200
    assert {reward.error for reward in rewards} == {"judge: no answer: 503 no"}
    # ten failures open it with up to seven more under way; then five probes
    assert len(server.calls) <= 10 + 7 + 5


def test_those_that_wait_behind_others_give_up_with_them(
    serve: Any, scorer: Any, answer: Any
) -> None:
    """Five probes are enough for all that were handed in before: not five for each few."""
    server = serve(Act())
    judge = scorer(server)
    gone = away(judge, 300)
    server.behave = lambda call: gone
    rewards = score_all(judge, [answer(f"It is {i}.") for i in range(300)])
    assert {reward.error for reward in rewards} == {"judge: no answer: 503 no"}
    assert len(server.calls) <= FAILURES + rate_limiter.START_CONCURRENCY + 5


def test_an_outage_is_told_once_until_answers_come_again(
    serve: Any, scorer: Any, answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(circuit_breaker, "BREAK_S", 0.1)
    server = serve(Act(status=503))
    judge = scorer(server)
    assert judge.trouble() is None
    for i in range(20):
        judge.submit(answer(f"It is {i}."))
    deadline = time.monotonic() + 60
    while (told := judge.trouble()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    name = "openai gpt-4o-mini"
    assert told == f"the judge ({name}) does not answer (503 no): asked again every 0.1 s."
    asked = len(server.calls)
    while len(server.calls) < asked + 3:  # probes that fail
        assert time.monotonic() < deadline
        assert judge.trouble() is None
        judge.submit(answer(f"It is still {time.monotonic()}."))
        time.sleep(0.02)
    server.behave = lambda call: Act()
    assert score_all(judge, [answer("It is back.")])[0].value == pytest.approx(EIGHT)
    assert judge.trouble() is None
    server.behave = lambda call: Act(status=503)
    score_all(judge, [answer(f"It is gone: {i}.") for i in range(20)])
    assert judge.trouble() == told
