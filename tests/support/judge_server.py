"""A judge on loopback that speaks the three wire formats and produces every fault on request."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

VERDICT = '{"reason": "sound", "score": 8}'
HOLD_S = 30.0
ENDLESS_S = 3600.0
"""A latency that no test waits for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request as it came in. attempt: how often this response was asked about, from 1."""

    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]
    user: str
    response: str
    attempt: int
    at: float

    @property
    def style(self) -> str:
        """Whose wire format it is in."""
        if self.path.endswith("/chat/completions"):
            return "openai"
        return "claude" if self.path.endswith("/messages") else "gemini"

    @property
    def mode(self) -> str:
        """The form of reply that was asked for."""
        if self.style == "openai":
            return self.body.get("response_format", {}).get("type", "text")
        if self.style == "claude":
            return "json_schema" if "output_config" in self.body else "text"
        config = self.body.get("generationConfig", {})
        if "responseJsonSchema" in config:
            return "json_schema"
        return "json_object" if "responseMimeType" in config else "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """What the server does with a call. raw: sent as the body in place of an answer.

    until: held back until this is true, over all calls HOLD_S at most.
    """

    text: str = VERDICT
    status: int = 200
    finish: str = "stop"
    error: Any = None
    raw: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    latency_s: float = 0.0
    until: Callable[[], bool] | None = None
    drips: bool = False
    cuts: bool = False
    has_usage: bool = True
    model: str | None = None
    tokens: tuple[int, int] = (100, 20)


Behaviour = Callable[[Call], Act]


class JudgeServer:
    """Serves `behave` until closed. `calls` has every request in order of arrival."""

    def __init__(self, behave: Behaviour) -> None:
        self.behave = behave
        self.calls: list[Call] = []
        self.most_in_flight = 0
        self._open: list[asyncio.StreamReader] = []
        self._patience_s = HOLD_S
        self._attempts: dict[str, int] = {}
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="judge server", daemon=True)
        self._thread.start()
        self._ready.wait()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def in_flight(self) -> int:
        """Calls that wait for their answer; those whose client has left do not."""
        return sum(not reader.at_eof() for reader in [*self._open])

    def close(self) -> None:
        """Stop, and drop every connection."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._talk, "127.0.0.1", 0, limit=2**22)
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._answer_one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.strip().split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        call = self._note(first.split()[1], headers, json.loads(body))
        act = self.behave(call)
        self._open.append(reader)
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._act(call, act, writer)
        finally:
            self._open.remove(reader)

    async def _act(self, call: Call, act: Act, writer: asyncio.StreamWriter) -> bool:
        if act.until is not None:
            await self._hold(act.until)
        await asyncio.sleep(act.latency_s)
        payload = act.raw if act.raw is not None else json.dumps(self._body(call, act)).encode()
        lines = [f"HTTP/1.1 {act.status} X", f"content-length: {len(payload)}"]
        lines += [
            f"{k}: {v}" for k, v in ({"content-type": "application/json"} | {**act.headers}).items()
        ]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        if act.cuts:
            writer.write(payload[: len(payload) // 2])
            await writer.drain()
            return False
        if act.drips:
            for byte in payload:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.05)
            return True
        writer.write(payload)
        await writer.drain()
        return True

    async def _hold(self, until: Callable[[], bool]) -> None:
        end = time.monotonic() + self._patience_s
        while not until():
            if time.monotonic() >= end:
                self._patience_s = 0.0
                return
            await asyncio.sleep(0.002)

    def _note(self, path: str, headers: Mapping[str, str], body: Mapping[str, Any]) -> Call:
        user = _user_text(body)
        found = re.search(r"<response-(\w+)>\n?(.*?)\n?</response-\1>", user, re.DOTALL)
        response = found[2] if found else ""
        self._attempts[response] = self._attempts.get(response, 0) + 1
        self.calls.append(
            Call(
                path=path,
                headers=headers,
                body=body,
                user=user,
                response=response,
                attempt=self._attempts[response],
                at=time.monotonic(),
            )
        )
        return self.calls[-1]

    def _body(self, call: Call, act: Act) -> Any:
        if act.error is not None or act.status >= 400:
            return act.error if act.error is not None else {"error": {"message": "no"}}
        return {"openai": _openai, "claude": _claude, "gemini": _gemini}[call.style](call, act)


def _user_text(body: Mapping[str, Any]) -> str:
    if "contents" in body:
        return body["contents"][0]["parts"][0]["text"]
    return body["messages"][-1]["content"]


def _openai(call: Call, act: Act) -> dict[str, Any]:
    reasons = {"stop": "stop", "length": "length", "blocked": "content_filter"}
    body: dict[str, Any] = {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": act.model or call.body["model"],
        "choices": [
            {
                "index": 0,
                "finish_reason": reasons[act.finish],
                "message": {"role": "assistant", "content": act.text},
            }
        ],
    }
    if act.has_usage:
        taken, made = act.tokens
        usage = {"prompt_tokens": taken, "completion_tokens": made, "total_tokens": taken + made}
        body["usage"] = usage
    return body


def _claude(call: Call, act: Act) -> dict[str, Any]:
    reasons = {"stop": "end_turn", "length": "max_tokens", "blocked": "refusal"}
    body: dict[str, Any] = {
        "id": "1",
        "type": "message",
        "role": "assistant",
        "model": act.model or call.body["model"],
        "content": [{"type": "text", "text": act.text}],
        "stop_reason": reasons[act.finish],
        "stop_sequence": None,
    }
    if act.has_usage:
        body["usage"] = {"input_tokens": act.tokens[0], "output_tokens": act.tokens[1]}
    return body


def _gemini(call: Call, act: Act) -> dict[str, Any]:
    body: dict[str, Any] = {"modelVersion": act.model or call.path.split("/")[-1].split(":")[0]}
    if act.has_usage:
        taken, made = act.tokens
        body["usageMetadata"] = {"promptTokenCount": taken, "candidatesTokenCount": made}
    if act.finish == "blocked":
        return body | {"promptFeedback": {"blockReason": "SAFETY"}}
    reason = {"stop": "STOP", "length": "MAX_TOKENS"}[act.finish]
    content = {"role": "model", "parts": [{"text": act.text}]}
    return body | {"candidates": [{"content": content, "finishReason": reason, "index": 0}]}
