"""What comes with status 200 is an answer, or a fault that says what it is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from judge_server import VERDICT, Act

from rlcli.rewards.base import score_all
from rlcli.rewards.judge.client import Reply, read_answer
from rlcli.rewards.judge.faults import Fault, Kind

KEY = "sk-canary-0123456789"
PROVIDERS = ("openai", "gemini", "claude")


def bodies(text: Any, usage: dict[str, Any]) -> dict[str, Any]:
    """The same answer as each provider gives it, `text` and `usage` in their places."""
    return {
        "openai": {"choices": [{"message": {"content": text}, "finish_reason": "stop"}], **usage},
        "gemini": {"candidates": [{"content": {"parts": [{"text": text}]}}], **usage},
        "claude": {"content": [{"type": "text", "text": text}], **usage},
    }


@pytest.mark.parametrize("provider", PROVIDERS)
def test_an_answer_counts_without_usage_or_model_and_with_odd_ones(
    provider: str, serve: Any, scorer: Any, answer: Any
) -> None:
    for usage in ({}, {"usage": [], "usageMetadata": "none", "model": 7, "modelVersion": None}):
        body = json.dumps(bodies(VERDICT, usage)[provider])
        server = serve(Act(raw=body.encode()))
        reward = score_all(scorer(server, provider), [answer("It is 42.")])[0]
        assert reward.value == pytest.approx(7 / 9)
        assert set(reward.usage) == {"calls", "cost_usd"}  # the most the call can have cost


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b'"fine"',
        b"null",
        b"8",
        b'{"choices": {}, "candidates": {"a": 1}, "content": [8]}',
        b"[" * 100_000,
    ],
    ids=["list", "text", "null", "number", "wrong types", "too deep"],
)
def test_a_200_of_another_shape_is_tried_again(
    provider: str, body: bytes, serve: Any, scorer: Any, answer: Any
) -> None:
    server = serve(lambda call: Act(raw=body) if call.attempt == 1 else Act())
    reward = score_all(scorer(server, provider), [answer("It is 42.")])[0]
    assert reward.value == pytest.approx(7 / 9)
    assert reward.usage["calls"] == 2


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": VERDICT}],
        [{"type": "text", "text": VERDICT[:9]}, {"type": "text", "text": VERDICT[9:]}],
        [{"type": "output_text", "text": VERDICT, "annotations": []}],
        [{"type": "thinking", "thinking": [{"type": "text", "text": "Score: 2"}]}, VERDICT],
        {"type": "text", "text": VERDICT},
        VERDICT,
    ],
    ids=["part", "parts", "output", "thinking", "object", "text"],
)
@pytest.mark.parametrize("provider", ["openai", "claude"])
def test_text_in_parts_is_read_without_the_thoughts(
    provider: str, content: Any, serve: Any, scorer: Any, answer: Any
) -> None:
    body = {
        "openai": {"choices": [{"finish_reason": "stop", "message": {"content": content}}]},
        "claude": {"content": content, "stop_reason": "end_turn"},
    }[provider]
    server = serve(Act(raw=json.dumps(body).encode()))
    reward = score_all(scorer(server, provider), [answer("It is 42.")])[0]
    assert reward.value == pytest.approx(7 / 9)


def test_every_call_of_geminis_sdk_is_counted_even_where_it_would_go_on_by_itself(
    serve: Any, scorer: Any, answer: Any
) -> None:
    candidate = {"finishReason": "CONTINUATION", "continuationToken": "YQ=="}
    part = {"content": {"role": "model", "parts": [{"text": "Let me"}]}}
    server = serve(Act(raw=json.dumps({"candidates": [candidate | part]}).encode()))
    reward = score_all(scorer(server, "gemini"), [answer("It is 42.")])[0]
    assert reward.value is None
    assert reward.usage["calls"] == len(server.calls)


USED = {"usageMetadata": {"promptTokenCount": 9}}
UNFINISHED = {"candidates": [{"finishReason": "UNEXPECTED_TOOL_CALL", "index": 0}], **USED}


@pytest.mark.parametrize(
    "empty",
    [
        {"candidates": [], **USED},
        USED,
        {"promptFeedback": {"safetyRatings": []}, **USED},
        UNFINISHED,
        {"candidates": [{"finishReason": "STOP", "content": {"role": "model"}}], **USED},
    ],
    ids=["no-candidates", "usage-only", "no-block-reason", "tool-call", "no-parts"],
)
def test_an_answer_of_gemini_without_text_is_asked_for_again(
    empty: dict[str, Any], serve: Any, scorer: Any, answer: Any
) -> None:
    raw = json.dumps(empty).encode()
    server = serve(lambda call: Act(raw=raw) if call.attempt == 1 else Act(text=VERDICT))
    reward = score_all(scorer(server, "gemini"), [answer("It is 42.")])[0]
    assert reward.value == pytest.approx(7 / 9)
    assert len(server.calls) == 2


@pytest.mark.parametrize(
    "block",
    [
        {"promptFeedback": {"blockReason": "OTHER"}, **USED},
        {"candidates": [{"finishReason": "RECITATION"}], **USED},
    ],
)
def test_a_filter_of_gemini_is_not_asked_again(
    block: dict[str, Any], serve: Any, scorer: Any, answer: Any
) -> None:
    server = serve(Act(raw=json.dumps(block).encode()))
    reward = score_all(scorer(server, "gemini"), [answer("It is 42.")])[0]
    assert "blocked by a content filter" in (reward.error or "")
    assert len(server.calls) == 1


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (
            b"<html><body>Sign in " + KEY.encode() + b"</body></html>",
            "200 with a page: Sign in ***",
        ),
        (b"  ", "empty 200"),
        (b"{}", "empty 200"),
        (b'{"error": {"message": "busy"}}', "200 with an error: {'message': 'busy'}"),
        (b"\xff\xfe\xff", "200 with a page"),
    ],
)
def test_a_fault_says_what_came_in_place_of_an_answer_without_the_key(
    body: bytes, text: str
) -> None:
    def read(answer: Any) -> Reply:
        return answer["choices"]

    with pytest.raises(Fault) as raised:
        read_answer(body, read, key=KEY)
    assert raised.value.kind is Kind.TRANSIENT
    assert raised.value.is_billed
    assert text in str(raised.value)
