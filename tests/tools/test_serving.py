"""`rlcli.serve`, called by the openai package."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from openai import AuthenticationError, BadRequestError, NotFoundError, OpenAI

import rlcli
from rlcli.tools.serving import PolicyServer

ASKED: list[Any] = [{"role": "user", "content": "12+34="}]


@pytest.fixture(scope="module")
def server() -> Iterator[PolicyServer]:
    with rlcli.serve("builtin:quickstart", device="cpu", dtype="float32", seed=5) as one:
        yield one


def client(server: PolicyServer, key: str | None = None) -> OpenAI:
    return OpenAI(base_url=server.base_url, api_key=key or server.api_key, max_retries=0)


def test_a_reply_is_what_was_sampled(server: PolicyServer) -> None:
    with server.episode() as one:
        found = client(server, one.api_key).chat.completions.create(
            model="any", messages=ASKED, logprobs=True, temperature=0.1
        )
        (row,) = one.conversations
    choice = found.choices[0]
    assert choice.finish_reason == "stop"
    assert choice.logprobs is not None
    assert [each.logprob for each in choice.logprobs.content or ()] == list(row.logprobs)
    assert found.usage is not None
    assert found.usage.completion_tokens == len(row.token_ids) == sum(row.mask)
    assert found.usage.prompt_tokens == len(row.prompt_ids)


def test_a_streamed_reply_is_the_same(server: PolicyServer) -> None:
    texts = []
    for is_stream in (False, True):
        with server.episode(place=7) as one:
            create = client(server, one.api_key).chat.completions.create
            if not is_stream:
                texts.append(create(model="m", messages=ASKED).choices[0].message.content)
                continue
            options: Any = {"include_usage": True}
            chunks = [*create(model="m", messages=ASKED, stream=True, stream_options=options)]
    parts = [each.choices[0] for each in chunks if each.choices]
    texts.append("".join(part.delta.content or "" for part in parts))
    assert parts[-1].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert texts[0] == texts[1]


def test_calls_that_come_together_draw_what_each_would_alone(server: PolicyServer) -> None:
    def ask(place: int) -> None:
        with server.episode(place=place) as one:
            create = client(server, one.api_key).chat.completions.create
            found[place].append(create(model="m", messages=ASKED).choices[0].message.content)

    found: dict[int, list[str | None]] = {place: [] for place in range(6)}
    threads = [threading.Thread(target=ask, args=(place,)) for place in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place in found:
        ask(place)
    assert all(first == second for first, second in found.values())
    assert len({first for first, _ in found.values()}) > 1


def test_the_model_is_listed_with_its_length(server: PolicyServer) -> None:
    (model,) = client(server).models.list().data
    assert model.id == server.model
    assert model.model_extra is not None
    assert model.model_extra["max_model_len"] > 0


def test_errors_are_the_clients_own(server: PolicyServer) -> None:
    create = client(server).chat.completions.create
    with pytest.raises(BadRequestError) as refused:
        create(model="m", messages=ASKED, n=2)
    assert refused.value.param == "n"
    with pytest.raises(BadRequestError) as long:
        create(model="m", messages=[{"role": "user", "content": "1" * 100_000}])
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(AuthenticationError):
        client(server, "wrong").models.list()
    with pytest.raises(NotFoundError):
        client(server).embeddings.create(model="m", input="x")
    with server.episode() as one:
        key = one.api_key
    with pytest.raises(AuthenticationError):
        client(server, key).chat.completions.create(model="m", messages=ASKED)


def test_token_ids_in_and_out(server: PolicyServer) -> None:
    with server.episode() as one:
        body = {"model": "m", "token_ids": [9, 8, 7], "sampling_params": {"max_tokens": 2}}
        url = server.base_url.removesuffix("/v1") + "/inference/v1/generate"
        head = {"Authorization": f"Bearer {one.api_key}"}
        request = urllib.request.Request(url, json.dumps(body).encode(), head)
        with urllib.request.urlopen(request) as reply:
            (choice,) = json.load(reply)["choices"]
        (row,) = one.conversations
    assert row.prompt_ids == (9, 8, 7)
    assert choice["token_ids"] == list(row.token_ids)
    assert [each["logprob"] for each in choice["logprobs"]["content"]] == list(row.logprobs)


def test_a_target_that_is_not_there_is_refused() -> None:
    with pytest.raises(rlcli.RlcliError, match="neither a run nor a model"), rlcli.serve("none"):
        pass


@pytest.mark.parametrize("temperature", [-1.0, float("nan")])
def test_a_temperature_below_zero_is_refused(temperature: float) -> None:
    with (
        pytest.raises(rlcli.RlcliError, match="from 0"),
        rlcli.serve("builtin:quickstart", temperature=temperature),
    ):
        pass
