"""Turns of episodes with servers that speak like vLLM's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fake_vllm import PARAMS, PROMPTS, Answering, Words

from rlcli.rollout.base import NextTurn
from rlcli.rollout.vllm.client import address_of
from rlcli.rollout.vllm.engine import VllmSettings
from rlcli.rollout.vllm.replica import Replica
from rlcli.rollout.vllm.server_sampler import ServerSampler
from rlcli.types import Rollout


class Signed(Answering):
    """Says its server's port first."""

    def say(self, content: Any) -> None:
        for choice in content.get("choices", ()):
            choice["token_ids"][0] = self.server.server_address[1]
        super().say(content)


@pytest.fixture
def urls() -> Iterator[list[str]]:
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Signed) for _ in range(3)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield [f"http://127.0.0.1:{server.server_port}" for server in servers]
    for server in servers:
        server.shutdown()
        server.server_close()


def sampler(urls: list[str]) -> ServerSampler:
    settings = VllmSettings(
        model_dir=Path(),
        dtype="float32",
        device="cpu",
        max_tokens=40,
        max_num_seqs=2,
        temperature=1.0,
    )
    replicas = [Replica(address_of(url), settings) for url in urls]
    return ServerSampler(replicas, Words(), eos_token_ids=(2,))


def test_a_row_stays_with_its_server_and_grows_by_what_was_said(urls: list[str]) -> None:
    turns: dict[int, list[Rollout]] = {}

    def go_on(index: int, turn: Rollout) -> Future[NextTurn | None]:
        turns.setdefault(index, []).append(turn)
        future: Future[NextTurn | None] = Future()
        is_over = len(turns[index]) == 4
        future.set_result(None if is_over else NextTurn(token_ids=(50, index), max_tokens=3))
        return future

    last = sampler(urls).generate(PROMPTS, PARAMS, seed=1, go_on=go_on)
    assert [len(turns[index]) for index in range(12)] == [4] * 12
    for index, each in turns.items():
        assert len({turn.token_ids[0] for turn in each}) == 1
        before = PROMPTS[index // 3].token_ids
        for turn in each:
            assert turn.prompt.token_ids == before
            before = (*before, *turn.token_ids, 50, index)
        assert last[index] == each[-1]


def test_no_row_waits_for_the_environment_of_another(urls: list[str]) -> None:
    """The first row's environment replies only when all others are over."""
    late: Future[NextTurn | None] = Future()
    counts: dict[int, int] = {}

    def go_on(index: int, turn: Rollout) -> Future[NextTurn | None]:
        counts[index] = counts.get(index, 0) + 1
        if index == 0 and counts[0] == 1:
            return late
        future: Future[NextTurn | None] = Future()
        is_over = counts[index] == 3
        future.set_result(None if is_over else NextTurn(token_ids=(50,), max_tokens=3))
        if sum(counts.get(other) == 3 for other in range(1, 12)) == 11 and not late.done():
            late.set_result(NextTurn(token_ids=(50,), max_tokens=3))
        return future

    sampler(urls).generate(PROMPTS, PARAMS, seed=1, go_on=go_on)
    assert set(counts.values()) == {3}
