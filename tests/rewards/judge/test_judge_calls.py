"""Real SDKs against a server of our own: every provider scores, every fault is met."""

from __future__ import annotations

import random
import time
from concurrent.futures import CancelledError
from typing import Any

import pytest
from judge_server import ENDLESS_S, VERDICT, Act, Call
from waiting import wait_until

from rlcli.errors import Paused
from rlcli.rewards.base import score_all
from rlcli.rewards.judge import call, rate_limiter

PROVIDERS = ("dashscope", "openai", "gemini", "claude")
KEYS = {
    "dashscope": ("DASHSCOPE_API_KEY",),
    "openai": ("OPENAI_API_KEY",),
    "gemini": ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    "claude": ("ANTHROPIC_API_KEY", "CLAUDE_API_KEY"),
}
STRAY = {
    "OPENAI_BASE_URL": "http://127.0.0.1:1/v1",
    "ANTHROPIC_BASE_URL": "http://127.0.0.1:1",
    "GOOGLE_GEMINI_BASE_URL": "http://127.0.0.1:1",
    "GOOGLE_GENAI_USE_VERTEXAI": "true",
}
EIGHT = 7 / 9
"""8 on a scale from 1 to 10."""


def error(code: str = "", message: str = "no", **fields: Any) -> dict[str, Any]:
    return {"error": {"message": message, "code": code, **fields}}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_each_provider_scores_with_each_of_its_keys_at_the_address_given(
    provider: str, serve: Any, scorer: Any, answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in STRAY.items():
        monkeypatch.setenv(name, value)
    server = serve(Act())
    for name in KEYS[provider]:
        judge = scorer(server, provider, env={name: f"key-of-{name}"}, prompt="math")
        reward = score_all(judge, [answer(f"It is 42 by {name}.")])[0]
        assert reward.value == pytest.approx(EIGHT)
        assert reward.parts == {"judge": reward.value}
        assert reward.error is None
        assert reward.usage["calls"] == 1
        assert (reward.usage["input_tokens"], reward.usage["output_tokens"]) == (100, 20)
        assert f"key-of-{name}" in str(server.calls[-1].headers)
    call = server.calls[-1]
    assert call.mode == "json_schema"
    assert "It is 42" in call.user
    assert "6 * 7?" in call.user


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize(
    "fault",
    [
        Act(status=500),
        Act(status=503, raw=b"<html>busy</html>"),
        Act(raw=b"<html><body>welcome</body></html>", headers={"content-type": "text/html"}),
        Act(raw=b"not json at all"),
        Act(raw=b"{}"),
        Act(error={"error": {"message": "overloaded", "code": 500}}),
        Act(cuts=True),
        Act(status=429, error=error("rate_limit"), headers={"retry-after-ms": "20"}),
        Act(status=429, error={"error": {"details": [{"retryDelay": "0.02s"}]}}),
        Act(status=529, error={"type": "error", "error": {"type": "overloaded_error"}}),
    ],
    ids=["500", "503", "html", "text", "empty", "error-in-200", "cut", "429", "delay", "529"],
)
def test_a_passing_fault_costs_no_score(
    provider: str, fault: Act, serve: Any, scorer: Any, answer: Any
) -> None:
    server = serve(lambda call: fault if call.attempt <= 2 else Act())
    reward = score_all(scorer(server, provider), [answer("It is 42.")])[0]
    assert reward.value == pytest.approx(EIGHT)
    assert reward.usage["calls"] == 3


def test_dashscopes_insufficient_quota_is_a_rate_limit(
    serve: Any, scorer: Any, answer: Any
) -> None:
    limit = Act(status=429, error=error("insufficient_quota"))
    server = serve(lambda call: limit if call.attempt <= 2 else Act())
    reward = score_all(scorer(server, "dashscope"), [answer("It is 42.")])[0]
    assert reward.value == pytest.approx(EIGHT)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_blocked_answer_is_unscored_after_one_call(
    provider: str, serve: Any, scorer: Any, answer: Any
) -> None:
    server = serve(Act(finish="blocked", text=""))
    judge = scorer(server, provider)
    reward = score_all(judge, [answer("It is 42.")])[0]
    assert reward.value is None
    assert "content filter" in (reward.error or "")
    assert not judge.can_recover(reward)
    assert len(server.calls) == 1


def test_a_filter_that_answers_400_is_a_block(serve: Any, scorer: Any, answer: Any) -> None:
    server = serve(Act(status=400, error=error("DataInspectionFailed")))
    reward = score_all(scorer(server, "dashscope"), [answer("It is 42.")])[0]
    assert "content filter" in (reward.error or "")
    assert len(server.calls) == 1


@pytest.mark.parametrize(
    "text", ["", "fine work", '{"score": true}', '{"score": 11}', '{"score": NaN}']
)
def test_a_reply_without_a_score_is_asked_for_once_more(
    text: str, serve: Any, scorer: Any, answer: Any
) -> None:
    server = serve(lambda call: Act(text=VERDICT if "twice" in call.response else text))
    judge = scorer(server)
    reward = score_all(judge, [answer("It is 42.")])[0]
    assert reward.value is None
    assert "no score in the reply" in (reward.error or "")
    assert len(server.calls) == 2
    assert "could not be read" in server.calls[1].user
    server.behave = lambda call: Act(text=text if call.attempt == 1 else VERDICT)
    assert score_all(judge, [answer("It is forty-two.")])[0].value == pytest.approx(EIGHT)


def test_a_cut_reply_gets_twice_the_room_and_is_never_read(
    serve: Any, scorer: Any, answer: Any
) -> None:
    cut = Act(text="The score: 3 would be", finish="length")
    server = serve(lambda call: cut if call.attempt == 1 else Act())
    assert score_all(scorer(server), [answer("It is 42.")])[0].value == pytest.approx(EIGHT)
    limits = [call.body.get("max_tokens") for call in server.calls]
    assert limits == [call.MAX_TOKENS, 2 * call.MAX_TOKENS]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_server_without_schemas_is_asked_in_a_laxer_form_from_then_on(
    provider: str, serve: Any, scorer: Any, answer: Any
) -> None:
    def behave(call: Call) -> Act:
        if call.mode == "text":
            return Act(text="It holds.\n**Score: 8/10**")
        return Act(status=400, error=error(message="response_format is not supported"))

    server = serve(behave)
    judge = scorer(server, provider)
    assert score_all(judge, [answer("It is 42.")])[0].value == pytest.approx(EIGHT)
    before = len(server.calls)
    assert score_all(judge, [answer("It is 43.")])[0].value == pytest.approx(EIGHT)
    assert [call.mode for call in server.calls[before:]] == ["text"]


def test_calls_that_wait_in_the_queue_use_the_form_that_others_found(
    serve: Any, scorer: Any, answer: Any
) -> None:
    refusal = Act(status=400, error=error(message="no json_schema here"))
    server = serve(lambda call: refusal if call.mode == "json_schema" else Act())
    score_all(scorer(server, concurrency=2), [answer(f"It is {i}.") for i in range(40)])
    assert sum(call.mode == "json_schema" for call in server.calls) <= 3


def test_one_prompt_that_is_refused_does_not_change_the_form_of_the_others(
    serve: Any, scorer: Any, answer: Any
) -> None:
    long = Act(status=400, error=error("context_length_exceeded", "too long"))
    server = serve(lambda call: long if "long" in call.response else Act())
    judge = scorer(server)
    assert score_all(judge, [answer("a long one")])[0].value is None
    assert [call.mode for call in server.calls] == ["json_schema", "json_object", *["text"] * 3]
    assert score_all(judge, [answer("It is 42.")])[0].value is not None
    assert server.calls[-1].mode == "json_schema"


@pytest.mark.parametrize(
    ("provider", "fault", "line"),
    [
        ("dashscope", Act(status=401, error=error("invalid_api_key")), "DASHSCOPE_API_KEY"),
        ("dashscope", Act(status=400, error=error("Arrearage")), "Top up"),
        ("openai", Act(status=401, error=error("invalid_api_key")), "OPENAI_API_KEY"),
        ("openai", Act(status=429, error=error("insufficient_quota")), "Top up"),
        ("openai", Act(status=404, error=error("model_not_found")), "--rm_model"),
        (
            "gemini",
            Act(
                status=400,
                error={
                    "error": {
                        "code": 400,
                        "message": "API key not valid.",
                        "status": "INVALID_ARGUMENT",
                        "details": [{"reason": "API_KEY_INVALID"}],
                    }
                },
            ),
            "GEMINI_API_KEY=your_api_key (or GOOGLE_API_KEY)",
        ),
        (
            "claude",
            Act(status=403, error={"type": "error", "error": {"type": "permission_error"}}),
            "ANTHROPIC_API_KEY",
        ),
        (
            "claude",
            Act(
                status=400,
                error={
                    "type": "error",
                    "error": {
                        "type": "invalid_request_error",
                        "message": "Your credit balance is too low to access the API.",
                    },
                },
            ),
            "Top up",
        ),
    ],
)
def test_a_fatal_fault_ends_all_scoring_with_the_line_to_type(
    provider: str, fault: Act, line: str, serve: Any, scorer: Any, answer: Any
) -> None:
    server = serve(fault)
    judge = scorer(server, provider)
    futures = [judge.submit(answer(f"It is {i}.")) for i in range(30)]
    for future in futures:
        with pytest.raises(Paused) as caught:
            future.result(timeout=60)
        assert line in str(caught.value)
        assert "--resume auto" in str(caught.value)
        assert str(caught.value).count("\n") <= 2
    with pytest.raises(Paused):
        judge.submit(answer("later")).result(timeout=60)
    assert len(server.calls) <= rate_limiter.START_CONCURRENCY
    assert "later" not in [call.response for call in server.calls]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_slow_drip_ends_at_the_time_of_one_call(
    provider: str, serve: Any, scorer: Any, answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(lambda call: Act(drips=call.attempt == 1))
    judge = scorer(server, provider, timeout_s=0.5)

    def patient_from_now_on(tries: int) -> float:
        judge._members[0].asker._timeout_s = 60.0
        return 0.0

    monkeypatch.setattr(call, "backoff_s", patient_from_now_on)
    begun = time.monotonic()
    assert score_all(judge, [answer("It is 42.")])[0].value == pytest.approx(EIGHT)
    assert time.monotonic() - begun > 0.4
    assert len(server.calls) == 2  # the drip alone would have ended well, after 15 s


def test_five_tries_without_an_answer_leave_a_rollout_unscored(
    serve: Any, scorer: Any, answer: Any
) -> None:
    server = serve(Act(status=500))
    judge = scorer(server)
    reward = score_all(judge, [answer("It is 42.")])[0]
    assert reward.value is None
    assert "500" in (reward.error or "")
    assert judge.can_recover(reward)
    assert len(server.calls) == 5


def test_a_refused_connection_is_tried_again_and_then_unscored(
    serve: Any, scorer: Any, answer: Any
) -> None:
    for provider in PROVIDERS:
        judge = scorer(serve(Act()), provider, base_url="http://127.0.0.1:9/v1")
        reward = score_all(judge, [answer("It is 42.")])[0]
        assert reward.value is None
        assert "no answer: ConnectError" in (reward.error or "")


def test_many_faults_lose_no_score_and_invent_none(serve: Any, scorer: Any, answer: Any) -> None:
    """30 % of 300 calls and more fail, of every kind that passes; each score is its own."""
    draw = random.Random(0)
    faults = [
        Act(status=500),
        Act(status=502, raw=b"<html>bad gateway</html>"),
        Act(status=429, headers={"retry-after-ms": "5"}),
        Act(cuts=True),
        Act(raw=b"<html>hello</html>", headers={"content-type": "text/html"}),
        Act(error={"error": {"message": "overloaded"}}),
        Act(raw=b""),
    ]

    def behave(call: Call) -> Act:
        if draw.random() < 0.3:
            return draw.choice(faults)
        score = int(call.response.split()[-1]) % 10 + 1
        has_usage = draw.random() < 0.9
        return Act(text=f'{{"reason": "r", "score": {score}}}', has_usage=has_usage)

    server = serve(behave)
    judge = scorer(server, concurrency=16)
    rewards = score_all(judge, [answer(f"It is {i}") for i in range(300)])
    assert [round((reward.value or 0) * 9) for reward in rewards] == [i % 10 for i in range(300)]
    assert all(reward.value is not None for reward in rewards)
    assert 350 < len(server.calls) < 600
    assert server.most_in_flight <= 16


def test_equal_rollouts_in_flight_share_one_call(serve: Any, scorer: Any, answer: Any) -> None:
    server = serve(Act(until=lambda: judge._tally._counts.get("dedup_hits") == 4))
    judge = scorer(server)
    rewards = score_all(judge, [answer("It is 42.") for _ in range(5)])
    assert [reward.value for reward in rewards] == pytest.approx([EIGHT] * 5)
    assert len(server.calls) == 1
    assert sum(reward.usage.get("calls", 0) for reward in rewards) == 1


def test_an_answer_that_says_nothing_scores_lowest_without_a_call(
    serve: Any, scorer: Any, answer: Any
) -> None:
    server = serve(Act())
    rewards = score_all(
        scorer(server), [answer(text) for text in ("", " . ", "Solution:", "答案是：")]
    )
    assert [reward.value for reward in rewards] == [0.0] * 4
    assert rewards[0].parts == {"judge": 0.0}
    assert server.calls == []


def test_the_scale_maps_the_lowest_to_0_and_the_highest_to_1(
    serve: Any, scorer: Any, answer: Any
) -> None:
    server = serve(lambda call: Act(text=f'{{"reason": "", "score": {call.response[-1]}}}'))
    judge = scorer(server, scale=[0, 4])
    values = [reward.value for reward in score_all(judge, [answer(f"is {i}") for i in (0, 1, 4)])]
    assert values == [0.0, 0.25, 1.0]
    schema = server.calls[0].body["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["score"]["enum"] == [0, 1, 2, 3, 4]
    assert "from 0 (worst) to 4 (best)" in server.calls[0].user


def test_close_cancels_what_is_being_scored(serve: Any, scorer: Any, answer: Any) -> None:
    server = serve(Act(latency_s=ENDLESS_S))
    judge = scorer(server, timeout_s=ENDLESS_S)
    futures = [judge.submit(answer(f"It is {i}.")) for i in range(20)]
    wait_until(lambda: server.in_flight >= 8)
    judge.close()
    judge.close()
    for future in futures:
        with pytest.raises(CancelledError):
            future.result(timeout=60)
    judge._thread.join(60)
    assert not judge._thread.is_alive()
    with pytest.raises(RuntimeError, match="closed"):
        judge.submit(answer("late"))
