"""The policy behind OpenAI's API on loopback: calls come in, and wait until they are sampled.

`POST /v1/chat/completions`, `POST /inference/v1/generate` (token ids) and `GET /v1/models`. Each
episode has a token of its own, the API key of its agent. Only 127.0.0.1 is listened on.
"""

from __future__ import annotations

import hmac
import json
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import SimpleQueue
from typing import Any, TypeVar

from rlcli.envs.chat import (
    ApiError,
    ChatRequest,
    Completion,
    TokenRequest,
    chat_chunks,
    chat_reply,
    model_list,
    read_chat,
    read_tokens,
    token_reply,
)

R = TypeVar("R", ChatRequest, TokenRequest)
HOST = "127.0.0.1"
MAX_BODY_BYTES = 64 * 2**20
CHAT = ("/v1/chat/completions", "/chat/completions")
TOKENS = ("/inference/v1/generate", "/v1/inference/v1/generate")
MODELS = ("/v1/models", "/models")
BACKLOG = 1024
"""Connections that may wait to be accepted: all agents of a step call at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingCall:
    """A pending call. key: API key of its episode. arrived_s: arrival on the monotonic clock."""

    key: str
    request: ChatRequest | TokenRequest
    reply: Future[Completion] = field(default_factory=Future[Completion])
    arrived_s: float = field(default_factory=time.monotonic)


class Endpoint:
    """The server. Calls with a known token arrive in `calls`, in the order in which they came.

    max_tokens: of prompt and reply together, as `/v1/models` lists it.
    """

    def __init__(self, calls: SimpleQueue[Any], *, max_tokens: int) -> None:
        self.calls, self.max_tokens = calls, max_tokens
        self._waiting: dict[str, set[Future[Completion]]] = {}
        self._lock = threading.Lock()
        self._server = _Server((HOST, 0), _Handler)
        self._server.endpoint = self
        serve = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)
        serve.start()

    @property
    def url(self) -> str:
        """Base address for OpenAI clients."""
        return f"http://{HOST}:{self._server.server_address[1]}/v1"

    def open(self) -> str:
        """A token that calls may use from now on."""
        key = secrets.token_urlsafe(24)
        with self._lock:
            self._waiting[key] = set()
        return key

    def close_key(self, key: str) -> None:
        """Refuse the token from now on; calls that wait with it fail."""
        with self._lock:
            left = self._waiting.pop(key, set())
        for future in left:
            with suppress(Exception):  # it may have been answered meanwhile
                future.set_exception(_unauthorized())

    def close(self) -> None:
        """Stop listening; calls that wait fail."""
        self._server.shutdown()
        self._server.server_close()
        for key in [*self._waiting]:
            self.close_key(key)

    def authorize(self, header: str) -> str:
        """The token of an Authorization header. Raises: ApiError (401) if it is not known."""
        given = header.removeprefix("Bearer ").strip().encode()
        with self._lock:
            keys = [*self._waiting]
        for key in keys:
            if hmac.compare_digest(key.encode(), given):
                return key
        raise _unauthorized()

    def ask(self, key: str, request: ChatRequest | TokenRequest) -> Completion:
        """Wait for the reply to a request. Raises: ApiError."""
        call = WaitingCall(key=key, request=request)
        with self._lock:
            if key not in self._waiting:
                raise _unauthorized()
            self._waiting[key].add(call.reply)
        self.calls.put(call)
        try:
            return call.reply.result()
        finally:
            with self._lock:
                self._waiting.get(key, set()).discard(call.reply)


def _unauthorized() -> ApiError:
    return ApiError(
        "this API key belongs to no running episode.", status=401, code="invalid_api_key"
    )


def _read(read: Callable[[Mapping[str, Any]], R], body: Mapping[str, Any]) -> R:
    """The request in `body`. Raises: ApiError, whatever type a field has."""
    try:
        return read(body)
    except ApiError:
        raise
    except Exception as error:
        raise ApiError(f"the request has a malformed field: {error}") from error


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = BACKLOG
    endpoint: Endpoint

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: an agent that ends may break its connections."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: agents log for themselves."""

    def do_GET(self) -> None:
        """`/v1/models`."""
        try:
            self._authorize()
            if self._path() not in MODELS:
                raise ApiError(f"there is no {self._path()}.", status=404)
            self._send(model_list(self.server.endpoint.max_tokens))
        except ApiError as error:
            self._send(error.body(), status=error.status)

    def do_POST(self) -> None:
        """A chat completion, or token ids for token ids."""
        try:
            body = self._body()
            key, path = self._authorize(), self._path()
            if path in TOKENS:
                one = self.server.endpoint.ask(key, _read(read_tokens, body))
                self._send(token_reply(one, number=secrets.token_hex(8)))
            elif path in CHAT:
                request = _read(read_chat, body)
                self._send_chat(self.server.endpoint.ask(key, request), request)
            else:
                raise ApiError(f"there is no {path}.", status=404)
        except ApiError as error:
            self._send(error.body(), status=error.status)

    def _path(self) -> str:
        return self.path.partition("?")[0].rstrip("/")

    def _authorize(self) -> str:
        return self.server.endpoint.authorize(self.headers.get("Authorization", ""))

    def _body(self) -> Mapping[str, Any]:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            self.close_connection = True  # the body is still on its way
            raise ApiError(f"Content-Length must be at most {MAX_BODY_BYTES}.", status=413)
        try:
            body = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError) as error:
            raise ApiError(f"the body is not JSON: {error}") from error
        if not isinstance(body, dict):
            raise ApiError("the body must be a JSON object.")
        return body

    def _send_chat(self, one: Completion, request: ChatRequest) -> None:
        number, time_s = secrets.token_hex(8), int(time.time())
        if not request.stream:
            self._send(chat_reply(one, request, number=number, time_s=time_s))
            return
        events = [*chat_chunks(one, request, number=number, time_s=time_s)]
        lines = [f"data: {json.dumps(event)}\n\n" for event in events]
        self._write("".join([*lines, "data: [DONE]\n\n"]).encode(), kind="text/event-stream")

    def _send(self, body: Mapping[str, Any], *, status: int = 200) -> None:
        self._write(json.dumps(body).encode(), kind="application/json", status=status)

    def _write(self, data: bytes, *, kind: str, status: int = 200) -> None:
        with suppress(OSError):  # the agent is gone
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
