"""Counts and latencies of a judge's calls."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from judge_server import Act

from rlcli.rewards.base import score_all
from rlcli.rewards.judge.counters import Tally


def test_percentiles_are_the_smallest_latency_that_covers_the_share() -> None:
    tally = Tally()
    for seconds in range(100, 0, -1):
        tally.latency(float(seconds))
    assert tally.drain() == {"judge/p50_s": 50.0, "judge/p95_s": 95.0}
    tally.latency(3.0)
    assert tally.drain() == {"judge/p50_s": 3.0, "judge/p95_s": 3.0}


def test_draining_begins_anew_and_nothing_counted_is_nothing_said() -> None:
    tally = Tally()
    tally.add("retries")
    tally.add("retries", 2.0)
    assert tally.drain() == {"judge/retries": 3.0}
    assert tally.drain() == {}


def test_no_count_is_lost_between_threads() -> None:
    tally = Tally()

    def count() -> None:
        for _ in range(5000):
            tally.add("retries")

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    total = 0.0
    while any(thread.is_alive() for thread in threads):
        total += tally.drain().get("judge/retries", 0.0)
    assert total + tally.drain().get("judge/retries", 0.0) == 20_000


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (Act(latency_s=0.05), {}),
        (Act(status=500), {"unscored_transient": 1, "retries": 4}),
        (Act(text="no"), {"unscored_bad": 1, "retries": 1}),
        (Act(finish="blocked"), {"unscored_blocked": 1}),
        (Act(status=400), {"unscored_request": 1, "retries": 4}),
    ],
    ids=["answered", "transient", "bad", "blocked", "request"],
)
def test_what_becomes_of_a_verdict_is_counted_by_kind(
    act: Act, expected: dict[str, float], serve: Any, scorer: Any, answer: Any
) -> None:
    judge = scorer(serve(act))
    score_all(judge, [answer("It is 42.")])
    found = judge.metrics()
    names = ("retries", "throttled", "breaker_openings", *(k for k in expected))
    counted = {name: found[f"judge/{name}"] for name in names if f"judge/{name}" in found}
    assert counted == expected
    assert ("judge/p50_s" in found) == (act.status == 200)
    if act.latency_s:
        assert 0.05 < found["judge/p50_s"] == found["judge/p95_s"] < 20.0  # s


def test_rate_limits_and_openings_of_the_breaker_are_counted(
    serve: Any, scorer: Any, answer: Any
) -> None:
    limit = Act(status=429, headers={"retry-after-ms": "5"})
    server = serve(lambda call: limit if call.attempt <= 2 else Act())
    judge = scorer(server)
    score_all(judge, [answer("It is 42.")])
    assert judge.metrics()["judge/throttled"] == 2
    server.behave = lambda call: Act(status=500)
    score_all(judge, [answer(f"It is {i}.") for i in range(4)])
    found = judge.metrics()
    assert found["judge/breaker_openings"] == 1
    assert found["judge/unscored_transient"] == 4
    assert "judge/throttled" not in found
