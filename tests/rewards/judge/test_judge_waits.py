"""The time that a server asks for: no call comes before it is over."""

from __future__ import annotations

import time
from email.utils import formatdate
from typing import Any

import pytest
from judge_server import Act, Call

from rlcli.rewards.base import score_all
from rlcli.rewards.judge import rate_limiter


def test_retry_after_closes_the_gate_for_all_and_costs_no_try(
    serve: Any, scorer: Any, answer: Any
) -> None:
    """Four calls are under way when they are refused; then nobody calls for a second."""
    wait = Act(status=429, headers={"retry-after": "1"}, until=lambda: server.most_in_flight == 4)
    server = serve(lambda call: wait if len(server.calls) <= 4 else Act())
    rewards = score_all(scorer(server, concurrency=4), [answer(f"It is {i}.") for i in range(8)])
    assert all(reward.value is not None for reward in rewards)
    refused, answered = server.calls[:4], server.calls[4:]
    assert len(answered) == 8
    assert min(call.at for call in answered) - max(call.at for call in refused) > 0.99


@pytest.mark.parametrize(
    ("status", "form"),
    [(503, "seconds"), (503, "date"), (503, "date, slow clock"), (408, "seconds"), (529, "date")],
)
def test_nobody_calls_before_the_time_that_the_server_asked_for(
    status: int, form: str, serve: Any, scorer: Any, answer: Any
) -> None:
    """All eight calls are under way when the first is refused, so that every later one waited."""
    now = time.time() + (-500 if "slow" in form else 0)
    wait = {"retry-after": "1" if form == "seconds" else formatdate(int(now) + 1, usegmt=True)}
    if form != "seconds":
        wait["date"] = formatdate(int(now), usegmt=True)
    refusal = Act(status=status, headers=wait, until=lambda: server.most_in_flight == 8)
    server = serve(lambda call: refusal if len(server.calls) <= 8 else Act())
    rewards = score_all(scorer(server), [answer(f"It is {i}.") for i in range(12)])
    assert all(reward.value is not None for reward in rewards)
    refused, answered = server.calls[:8], server.calls[8:]
    assert len(answered) == 12
    assert min(call.at for call in answered) - max(call.at for call in refused) > 0.99


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_an_hour_is_waited_for_until_the_deadline_only(
    form: str, serve: Any, scorer: Any, answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two waits are cut to the longest that is allowed; the third is not, and would be too long."""
    monkeypatch.setattr(rate_limiter, "MAX_WAIT_S", 0.2)
    value = "3600" if form == "seconds" else formatdate(time.time() + 3600, usegmt=True)

    def behave(call: Call) -> Act:
        if len(server.calls) == 3:
            monkeypatch.setattr(rate_limiter, "MAX_WAIT_S", 7200.0)
        return Act(status=429, headers={"retry-after": value}) if call.attempt <= 3 else Act()

    server = serve(behave)
    reward = scorer(server, "claude").submit(answer("It is 42.")).result(timeout=60)
    assert reward.value is None
    assert "rate limit" in (reward.error or "")
    first, second, third = (call.at for call in server.calls)
    assert min(second - first, third - second) > 0.19
