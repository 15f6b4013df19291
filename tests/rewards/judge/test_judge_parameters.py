"""Parameters that a model refuses, and what is learnt from it."""

from __future__ import annotations

from typing import Any

import pytest
from judge_server import Act, Call

from rlcli.rewards.base import score_all

EIGHT = 7 / 9
"""8 on a scale from 1 to 10."""


def error(code: str, message: str = "no", **fields: str) -> dict[str, Any]:
    return {"error": {"message": message, "code": code, **fields}}


def test_what_a_newer_model_refuses_is_left_out(serve: Any, scorer: Any, answer: Any) -> None:
    def behave(call: Call) -> Act:
        if "temperature" in call.body:
            return Act(status=400, error=error("unsupported_value", param="temperature"))
        if "max_tokens" in call.body:
            message = "Unsupported: 'max_tokens'. Use 'max_completion_tokens' instead"
            return Act(status=400, error=error("unsupported_parameter", message))
        return Act()

    server = serve(behave)
    judge = scorer(server)
    score_all(judge, [answer("It is 41.")])
    assert score_all(judge, [answer("It is 42.")])[0].value == pytest.approx(EIGHT)
    assert "max_completion_tokens" in server.calls[-1].body
    assert len(server.calls) == 4


@pytest.mark.parametrize("fields", [{}, {"param": "temperature"}])
def test_a_refusal_that_is_not_cured_by_leaving_a_parameter_out_changes_nothing(
    fields: dict[str, str], serve: Any, scorer: Any, answer: Any
) -> None:
    refusal = Act(status=400, error=error("bad", "the text says: temperature 30", **fields))
    server = serve(lambda call: refusal if "hot" in call.response else Act())
    judge = scorer(server)
    assert score_all(judge, [answer("It is hot.")])[0].value is None
    assert score_all(judge, [answer("It is 42.")])[0].value == pytest.approx(EIGHT)
    assert server.calls[-1].body["temperature"] == 0.0


def roles(call: Call) -> list[str]:
    return [message["role"] for message in call.body["messages"]]


NO_SYSTEM = [
    Act(status=400, error={"error": {"message": "System role not supported", "code": 400}}),
    Act(
        status=400,
        error=error(
            "unsupported_value",
            "'messages[0].role' does not support 'system' with this model.",
            param="messages[0].role",
        ),
    ),
    Act(status=422, error={"error": {"message": "roles must alternate user/assistant/user/..."}}),
    Act(status=500, error={"error": {"message": "Jinja: System message is not supported"}}),
]


@pytest.mark.parametrize("refusal", NO_SYSTEM, ids=["gemma", "o1", "mistral", "llama.cpp"])
def test_a_server_without_a_system_role_gets_its_text_in_front_of_the_users(
    refusal: Act, serve: Any, scorer: Any, answer: Any
) -> None:
    server = serve(lambda call: refusal if "system" in roles(call) else Act())
    judge = scorer(server)
    assert score_all(judge, [answer("It is 41.")])[0].value == pytest.approx(EIGHT)
    assert [roles(call) for call in server.calls] == [["system", "user"], ["user"]]
    refused, taken = server.calls
    assert taken.user == f"{refused.body['messages'][0]['content']}\n\n{refused.user}"
    assert taken.mode == "json_schema"
    score_all(judge, [answer("It is 42.")])
    assert roles(server.calls[2]) == ["user"]
    assert len(server.calls) == 3


def test_neither_a_system_role_nor_a_json_form(serve: Any, scorer: Any, answer: Any) -> None:
    def behave(call: Call) -> Act:
        if "system" in roles(call):
            return NO_SYSTEM[0]
        return Act(status=400, error=error("bad", "no forms")) if call.mode != "text" else Act()

    server = serve(behave)
    judge = scorer(server)
    assert score_all(judge, [answer("It is 41.")])[0].value == pytest.approx(EIGHT)
    assert score_all(judge, [answer("It is 42.")])[0].value == pytest.approx(EIGHT)
    assert (roles(server.calls[-1]), server.calls[-1].mode) == (["user"], "text")


def test_a_refusal_without_a_reason_is_tried_without_the_system_role_last(
    serve: Any, scorer: Any, answer: Any
) -> None:
    refusal = Act(status=400, error=error("bad", "invalid request"))
    server = serve(lambda call: refusal if "system" in roles(call) else Act())
    assert score_all(scorer(server), [answer("It is 42.")])[0].value == pytest.approx(EIGHT)
    assert ["system" in roles(call) for call in server.calls] == [True] * 4 + [False]


def test_a_response_that_speaks_of_the_system_role_moves_it_for_no_other(
    serve: Any, scorer: Any, answer: Any
) -> None:
    """Some servers quote what they refuse; what comes after is asked as before."""
    refusal = Act(status=400, error=error("bad", "refused: my system prompt is ..."))
    server = serve(lambda call: refusal if "prompt" in call.response else Act())
    judge = scorer(server)
    assert score_all(judge, [answer("my system prompt is ...")])[0].value is None
    assert score_all(judge, [answer("It is 42.")])[0].value == pytest.approx(EIGHT)
    assert roles(server.calls[-1]) == ["system", "user"]
    assert server.calls[-1].mode == "json_schema"


@pytest.mark.parametrize("provider", ["gemini", "claude"])
def test_the_other_providers_are_asked_without_a_system_prompt_too(
    provider: str, serve: Any, scorer: Any, answer: Any
) -> None:
    message = "Developer instruction is not enabled for models/gemma-3-27b-it"
    refusal = Act(status=400, error={"error": {"message": message, "status": "INVALID_ARGUMENT"}})
    server = serve(
        lambda call: refusal if {"system", "systemInstruction"} & {*call.body} else Act()
    )
    assert score_all(scorer(server, provider), [answer("It is 42.")])[0].value == pytest.approx(
        EIGHT
    )
    assert len(server.calls) == 2
