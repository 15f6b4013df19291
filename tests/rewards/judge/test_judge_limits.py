"""Budget, paces and concurrency: what a judge may cost, and how fast it is asked."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path
from typing import Any

import pytest
from judge_server import ENDLESS_S, Act, Call
from virtual_time import run_at_once
from waiting import wait_until

from rlcli.errors import Paused
from rlcli.rewards.base import score_all
from rlcli.rewards.judge import rate_limiter
from rlcli.rewards.judge.budget import Ledger, find_price
from rlcli.rewards.judge.circuit_breaker import Patience
from rlcli.rewards.judge.faults import Fault, Kind, Outage
from rlcli.rewards.judge.rate_limiter import Pace, RateLimiter


def test_prices_are_found_for_dated_versions_and_never_for_a_sibling() -> None:
    price = find_price("claude", "claude-3-haiku-20240307")
    assert price is not None
    assert price.cost_usd(1_000_000, 1_000_000) == pytest.approx(0.25 + 1.25)
    mini = find_price("openai", "gpt-4o-mini-2024-07-18")
    assert mini is not None
    assert mini.cost_usd(1_000_000, 0) == pytest.approx(0.15)
    assert find_price("openai", "gpt-4o-audio") is None
    assert find_price("dashscope", "my-own-model") is None
    assert find_price("dashscope", "qwen-plus-latest") == find_price("dashscope", "qwen-plus")
    abroad = find_price("dashscope", "qwen-plus", base_url="https://dashscope-intl.aliyuncs.com/v1")
    assert abroad is not None
    assert abroad.cost_usd(1_000_000, 0) == pytest.approx(0.40)


@pytest.mark.parametrize("has_usage", [True, False])
def test_a_budget_is_never_exceeded_and_its_end_pauses_the_run(
    has_usage: bool, serve: Any, scorer: Any, answer: Any
) -> None:
    """gpt-4o-mini: 100 in + 20 out cost $0.000027; a call is reserved at about $0.0015."""
    server = serve(Act(has_usage=has_usage))
    judge = scorer(server, max_cost=0.006)
    values = []

    def score_until_it_ends() -> None:
        for first in range(0, 2000, 50):
            rollouts = [answer(f"It is {first + i}.") for i in range(50)]
            values.extend(reward.value for reward in score_all(judge, rollouts))

    with pytest.raises(Paused) as caught:
        score_until_it_ends()
    assert "--max_judge_cost 0.012 --resume auto" in str(caught.value)
    assert "reward.judge.max_cost" in str(caught.value)
    assert None not in values
    assert judge.spent_usd <= 0.006
    if has_usage:
        assert len(server.calls) > 100
        assert judge.spent_usd == pytest.approx(len(server.calls) * 27e-6)


@pytest.mark.parametrize("seed", range(5))
def test_no_mix_of_votes_panel_cache_and_faults_bills_more_than_the_budget(
    seed: int, serve: Any, scorer: Any, answer: Any, tmp_path: Path
) -> None:
    """Dollars are those of the server, which bills every answer it wrote, cut ones too."""
    draw = random.Random(seed)
    prices = {"gpt-4o-mini": (0.15e-6, 0.60e-6), "gpt-4.1-nano": (0.10e-6, 0.40e-6)}
    billed: list[float] = []

    def behave(call: Call) -> Act:
        if draw.random() < 0.1:
            return Act(status=draw.choice([500, 503, 429]), headers={"retry-after-ms": "5"})
        tokens = (draw.randint(1, 1000), draw.choice([20, 200, 2048]))
        into, out = prices[call.body["model"]]
        billed.append(tokens[0] * into + tokens[1] * out)
        is_cut = draw.random() < 0.1
        return Act(
            tokens=tokens,
            latency_s=draw.random() / 100,
            cuts=is_cut,
            has_usage=draw.random() < 0.9,
            text=draw.choice(["no", '{"reason": "sound", "score": 8}']),
        )

    judge = scorer(
        serve(behave),
        max_cost=0.05,
        votes=draw.choice([1, 3]),
        panel=["gpt-4.1-nano"],
        concurrency=draw.choice([4, 32]),
        run_dir=tmp_path,
    )
    spent: list[float] = []

    def score_until_it_ends() -> None:
        for first in range(0, 5000, 40):
            rollouts = [answer(f"It is {(first + i) // 2}.", prompt=f"{i}?") for i in range(40)]
            score_all(judge, rollouts)
            spent.append(judge.spent_usd)

    with pytest.raises(Paused, match="has spent"):
        score_until_it_ends()
    assert spent == sorted(spent)
    judge.close()
    assert 0.5 * 0.05 < judge.spent_usd <= 0.05
    assert sum(billed) <= judge.spent_usd
    # and what a process that is killed now would find
    assert Ledger(tmp_path / "judge_spent.txt").read() == pytest.approx(judge.spent_usd, abs=1e-9)


def test_what_a_killed_run_spent_is_not_forgotten(
    serve: Any, scorer: Any, answer: Any, tmp_path: Path
) -> None:
    """No checkpoint was saved, and nothing was closed: the file in the run's directory knows."""
    first = scorer(serve(Act()), run_dir=tmp_path, cache="off")
    score_all(first, [answer("It is 42.")])
    hanging = scorer(serve(Act(latency_s=ENDLESS_S)), run_dir=tmp_path, cache="off")
    assert hanging.spent_usd == pytest.approx(27e-6)
    hanging.submit(answer("It is 43."))
    wait_until(lambda: hanging.state()["spent_usd"] > hanging.spent_usd)
    second = scorer(serve(Act()), run_dir=tmp_path, cache="off")
    # with the most that the call under way can cost
    assert second.spent_usd == pytest.approx(hanging.state()["spent_usd"])
    assert second.spent_usd > 1e-3
    second.load_state({"spent_usd": 0.0})
    assert second.spent_usd > 1e-3


@pytest.mark.parametrize("text", ["", "well", "nan", "-1", "inf", "0.5\n"])
def test_a_ledger_that_says_nothing_sensible_says_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "spent").write_text(text)
    ledger = Ledger(tmp_path / "spent")
    assert ledger.read() == (0.5 if text == "0.5\n" else 0.0)
    ledger.write(0.25)
    assert ledger.read() == 0.25
    ledger.close()


def test_a_price_of_ones_own_is_what_calls_cost(serve: Any, scorer: Any, answer: Any) -> None:
    judge = scorer(serve(Act()), model="mine", price=[1.0, 10.0], max_cost=1.0)
    (reward,) = score_all(judge, [answer("It is 42.")])
    assert reward.usage["cost_usd"] == pytest.approx(100 * 1e-6 + 20 * 10e-6)
    assert judge.spent_usd == pytest.approx(300e-6)
    assert judge.metrics()["judge/budget_left_usd"] == pytest.approx(1.0 - 300e-6)
    assert "judge/budget_left_usd" not in scorer(serve(Act())).metrics()


def test_what_was_spent_before_a_resume_counts(serve: Any, scorer: Any, answer: Any) -> None:
    server = serve(Act())
    judge = scorer(server, max_cost=1.0, spent_usd=0.9999)
    with pytest.raises(Paused, match=r"has spent \$0.9999 of \$1"):
        score_all(judge, [answer("It is 42.")])
    assert server.calls == []
    assert judge.state() == {"spent_usd": 0.9999}
    with pytest.raises(Paused, match=r"--max_judge_cost 1\.9998 --resume auto"):
        score_all(scorer(server, max_cost=0.5, spent_usd=0.9999), [answer("It is 42.")])


def test_calls_that_are_given_up_count_in_what_is_kept(
    serve: Any, scorer: Any, answer: Any
) -> None:
    server = serve(Act(latency_s=ENDLESS_S))
    judge = scorer(server)
    judge.submit(answer("It is 42."))
    wait_until(lambda: server.calls)
    assert judge.spent_usd == 0.0
    assert judge.state()["spent_usd"] == pytest.approx(0.0015, rel=0.5)


def test_a_judge_that_does_not_end_is_left_behind(
    serve: Any, scorer: Any, answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlcli.rewards.judge.scorer.CLOSE_S", 0.1)
    judge = scorer(serve(Act()))

    async def never() -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(judge._members[0].connection, "close", never)
    judge.close()
    judge._thread.join(60)
    assert not judge._thread.is_alive()


def test_calls_per_minute_are_spaced_evenly(serve: Any, scorer: Any, answer: Any) -> None:
    server = serve(Act())
    judge, begun = scorer(server, rpm=1200), time.monotonic()
    score_all(judge, [answer(f"It is {i}.") for i in range(10)])
    times = sorted(call.at - begun for call in server.calls)
    assert all(at > 0.99 * i * 0.05 for i, at in enumerate(times))


def test_tokens_per_minute_hold_calls_back_by_what_they_really_used() -> None:
    async def run() -> float:
        pace, loop = Pace(6000), asyncio.get_running_loop()  # 100 a second
        begun = loop.time()
        await pace.take(10)
        pace.correct(20)  # it used 30
        await pace.take(10)
        return loop.time() - begun

    assert run_at_once(run()) == pytest.approx(0.3)


def test_tpm_slows_a_judge_down(
    serve: Any, scorer: Any, answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(Act(tokens=(1500, 500)))
    judge = scorer(server, tpm=600_000, concurrency=1)  # 10,000 a second: 0.2 s a call
    pace, counted = judge._members[0].limiter._tokens, 0.0
    take, correct = pace.take, pace.correct

    async def take_counted(units: float) -> None:
        nonlocal counted
        counted += units
        await take(units)

    def correct_counted(units: float) -> None:
        nonlocal counted
        counted += units
        correct(units)

    monkeypatch.setattr(pace, "take", take_counted)
    monkeypatch.setattr(pace, "correct", correct_counted)
    begun = time.monotonic()
    score_all(judge, [answer(f"It is {i}.") for i in range(4)])
    assert time.monotonic() - begun > 0.55
    assert counted == 4 * 2000


def test_concurrency_is_a_ceiling_and_is_reached(serve: Any, scorer: Any, answer: Any) -> None:
    """Four answers raise the limit from 8 to 20; the others are held until so many wait."""

    def behave(call: Call) -> Act:
        most = 8 if len(server.calls) <= 4 else 20
        return Act(until=lambda: server.most_in_flight >= most, latency_s=0.02)

    server = serve(behave)
    score_all(scorer(server, concurrency=20), [answer(f"It is {i}.") for i in range(200)])
    assert server.most_in_flight == 20
    one = serve(Act(latency_s=0.01))
    score_all(scorer(one, concurrency=1), [answer(f"It is {i}.") for i in range(5)])
    assert one.most_in_flight == 1


def test_an_episode_of_rate_limits_takes_a_fifth_once_and_then_grows_slowly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rate_limiter, "COOLDOWN_S", 10.0)

    async def run() -> None:
        steer = RateLimiter(concurrency=100, rpm=None, tpm=None)
        assert steer.limit == 8
        for _ in range(4):
            steer.note_answer()
        assert steer.limit == 20
        begun = asyncio.get_running_loop().time() - 1.0
        for _ in range(5):  # all were under way: one episode
            steer.note_throttle(begun, 0.0)
        assert steer.limit == 16
        steer.note_answer()
        assert steer.limit == 16  # cooling down
        steer._steady_until = 0.0
        for _ in range(17):
            steer.note_answer()
        assert steer.limit == 17

    run_at_once(run())


def test_a_wait_is_never_longer_than_two_minutes() -> None:
    async def run() -> float:
        steer = RateLimiter(concurrency=8, rpm=None, tpm=None)
        now = asyncio.get_running_loop().time()
        steer.note_throttle(now, 3600.0)
        return steer.open_at - now

    assert run_at_once(run()) == pytest.approx(120.0)


def test_a_judge_that_only_says_rate_limit_ends_the_wait_of_all_at_once(
    serve: Any, scorer: Any, answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other, each for its own 300 s, 500 rollouts would wait for days."""
    monkeypatch.setattr(rate_limiter, "MAX_WAIT_S", 0.1)
    server = serve(Act(status=429))
    judge = scorer(server)
    judge._members[0].asker._deadline_s = 0.5
    begun = time.monotonic()
    rewards = score_all(judge, [answer(f"It is {i}.") for i in range(200)])
    assert time.monotonic() - begun > 0.3
    assert len({call.response for call in server.calls}) < 100  # the others were never asked about
    assert {reward.error for reward in rewards} == {"judge: rate limit: 429 no"}
    assert judge.metrics()["judge/unscored_throttle"] == 200


@pytest.mark.parametrize("was_answered", [True, False])
def test_calls_wait_on_where_others_were_answered_and_leave_their_slots_free(
    was_answered: bool,
) -> None:
    async def run() -> list[bool]:
        steer = RateLimiter(concurrency=1, rpm=None, tpm=None)
        begun = asyncio.get_running_loop().time()
        patience = Patience(probes=5, since=begun)
        has_slot = asyncio.Event()

        async def call() -> None:
            async with steer.call(1, first=False, patience=patience):
                has_slot.set()
                await asyncio.sleep(0.01)

        calls = [asyncio.ensure_future(call()) for _ in range(5)]
        await has_slot.wait()
        if was_answered:
            steer.note_answer()
        steer.give_up(Fault(Kind.THROTTLE, "429"), since=begun)
        calls[4].cancel()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        patience = Patience(probes=5, since=asyncio.get_running_loop().time())
        await call()  # one that comes later
        return [isinstance(outcome, Outage) for outcome in outcomes]

    assert run_at_once(run()) == [False, *[not was_answered] * 3, False]
