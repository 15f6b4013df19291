"""Requests in OpenAI's form: read, or refused with an error in its form."""

from __future__ import annotations

import json
from http.client import HTTPConnection
from queue import SimpleQueue
from typing import Any

import pytest

from rlcli.envs.chat import ApiError, read_chat, read_tokens
from rlcli.envs.endpoint import HOST, Endpoint

ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"n": 2}, "n"),
        ({"logit_bias": {"3": 1}}, "logit_bias"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"stop": [1]}, "stop"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0]"),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_its_name(more: Any, param: str) -> None:
    with pytest.raises(ApiError) as refused:
        read_chat({**ASKED, **more})
    error = refused.value.body()["error"]
    assert (refused.value.status, error["param"]) == (400, param)
    assert error["type"] == "invalid_request_error"


def test_the_runs_sampling_wins_over_the_agents() -> None:
    free = {"temperature": 0.1, "top_p": 0.5, "seed": 4, "presence_penalty": 1, "user": "me"}
    assert read_chat({**ASKED, **free}) == read_chat(ASKED)


def test_parts_of_text_are_one_text_and_developers_are_the_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    (message,) = read_chat({"messages": [{"role": "developer", "content": parts}]}).messages
    assert (message.role, message.content) == ("system", "ab")


def test_tools_that_may_not_be_called_are_not_shown() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    assert read_chat({**ASKED, "tools": [tool]}).tools == (tool,)
    assert read_chat({**ASKED, "tools": [tool], "tool_choice": "none"}).tools == ()


@pytest.mark.parametrize("ids", [None, [], ["a"], [-1]])
def test_token_calls_need_token_ids(ids: Any) -> None:
    with pytest.raises(ApiError):
        read_tokens({"token_ids": ids})


def test_a_field_of_another_type_is_an_error_in_openais_form() -> None:
    endpoint = Endpoint(SimpleQueue(), max_tokens=9)
    try:
        head = {"Authorization": f"Bearer {endpoint.open()}"}
        connection = HTTPConnection(HOST, int(endpoint.url.rpartition(":")[2].removesuffix("/v1")))
        for more in (
            {"response_format": "text"},
            {"stream_options": 3},
            {"messages": [{"role": "user", "content": "hi", "tool_calls": 3}]},
            {"stop": "\ud800"},
        ):
            body = json.dumps({**ASKED, **more})
            connection.request("POST", "/v1/chat/completions", body, head)
            reply = connection.getresponse()
            assert (reply.status, reply.will_close) == (400, False)
            assert json.load(reply)["error"]["type"] == "invalid_request_error"
        connection.close()
    finally:
        endpoint.close()
