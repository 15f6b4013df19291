"""A server that speaks like vLLM's, and a tokenizer for it."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from typing import Any

from rlcli.rollout.base import SamplingParams
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


class Words:
    """A tokenizer of numbers."""

    def decode(self, token_ids: Any, **_: Any) -> str:
        return " ".join(map(str, token_ids))
