"""Two servers that speak like vLLM's, one of which goes away."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rlcli.rollout.base import SamplingParams
from rlcli.rollout.vllm.client import address_of
from rlcli.rollout.vllm.engine import VllmSettings
from rlcli.rollout.vllm.replica import Replica
from rlcli.rollout.vllm.server_sampler import ServerSampler
from rlcli.terminal.logs import collected
from rlcli.types import Prompt

PARAMS = SamplingParams(n=3, max_tokens=4)
PROMPTS = [Prompt(id=str(i), messages=(), token_ids=(7, i)) for i in range(4)]


class Answering(BaseHTTPRequestHandler):
    """Says two tokens, made of the seed."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        token = body.get("seed", 0) % 100
        choice = {
            "token_ids": [token, 2],
            "logprobs": {"token_logprobs": [-0.5, -0.25]},
            "finish_reason": "stop",
        }
        self.say({"choices": [choice], "results": []})

    def say(self, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class ProcessExited(Answering):
    """Hangs up."""

    def do_POST(self) -> None:
        self.close_connection = True


class Words:
    """A tokenizer of numbers."""

    def decode(self, token_ids: Any, **_: Any) -> str:
        return " ".join(map(str, token_ids))


@pytest.fixture
def urls() -> Iterator[list[str]]:
    """Of a server that answers and of one that has gone."""
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), kind) for kind in (Answering, ProcessExited)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield [f"http://127.0.0.1:{server.server_port}" for server in servers]
    for server in servers:
        server.shutdown()
        server.server_close()


def test_the_other_server_does_the_work_of_one_that_died_from_the_same_seeds(
    urls: list[str],
) -> None:
    settings = VllmSettings(
        model_dir=Path(),
        dtype="float32",
        device="cpu",
        max_tokens=9,
        max_num_seqs=8,
        temperature=1.0,
    )

    def sample(urls: list[str]) -> list[tuple[int, ...]]:
        replicas = [Replica(address_of(url), settings) for url in urls]
        sampler = ServerSampler(replicas, Words(), eos_token_ids=(2,))
        return [rollout.token_ids for rollout in sampler.generate(PROMPTS, PARAMS, seed=1)]

    with collected(prints=False) as told:
        alone = sample(urls[:1])
        assert len(set(alone)) > 6
        assert told == []
        assert sample(urls) == alone
    assert told == [
        f"the vLLM server at {urls[1]} died: it said nothing; the others do its work until the "
        "next update."
    ]
