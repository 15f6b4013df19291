"""HTTP client for a vLLM server, with JSON requests and responses."""

from __future__ import annotations

import http.client
import json
import os
import socket
import urllib.parse
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from rlcli.errors import ConfigError

CONNECT_S = 10.0
SAID_CHARS = 300


class ServerFailedError(Exception):
    """No response, or a server error (5xx)."""


class ServerRefusedError(Exception):
    """A response that a retry would not change. status: HTTP status code."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Address:
    """Address of a server. path: URL path before /v1."""

    host: str
    port: int
    scheme: str = "http"
    path: str = ""

    @property
    def url(self) -> str:
        """http://HOST:PORT"""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"


def address_of(url: str) -> Address:
    """Parse rollout.url, with or without a final /v1. Raises: ConfigError."""
    parts = urllib.parse.urlsplit(url.strip())
    with suppress(ValueError):
        port = parts.port or (443 if parts.scheme == "https" else 80)
        if parts.scheme in ("http", "https") and parts.hostname and not parts.query:
            path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
            return Address(parts.hostname, port, parts.scheme, path)
    raise ConfigError(
        f"rollout.url={url} is no address of a vLLM server.\nExpected http://HOST:PORT"
    )


class Call:
    """One request and its response; another thread may cancel it."""

    def __init__(self, address: Address, *, timeout_s: float | None) -> None:
        kind = http.client.HTTPConnection
        if address.scheme == "https":
            kind = http.client.HTTPSConnection
        self._address, self._timeout_s = address, timeout_s
        self._connection = kind(address.host, address.port, timeout=CONNECT_S)
        self._is_ended = False

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Send the request, return the response. Raises: ServerFailedError, ServerRefusedError."""
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("VLLM_API_KEY"):  # the variable that vLLM itself reads
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        try:
            self._connection.connect()
            self._connection.sock.settimeout(self._timeout_s)
            if self._is_ended:
                raise ConnectionAbortedError("the request was taken back")
            self._connection.request(method, self._address.path + path, data, headers)
            answer = self._connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            said = f"no answer within {self._timeout_s:g} s" if self._timed_out(error) else error
            raise ServerFailedError(f"{type(error).__name__}: {said}") from error
        finally:
            self._connection.close()
        return _content(answer.status, text)

    def end(self) -> None:
        """Make `ask` fail now; the server aborts the request when the connection closes."""
        self._is_ended = True
        line = self._connection.sock
        if line is not None:
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)

    def _timed_out(self, error: Exception) -> bool:
        return isinstance(error, TimeoutError) and self._timeout_s is not None


def ask(address: Address, path: str, body: Any = None, *, timeout_s: float | None) -> Any:
    """Response of the server: to a POST if there is a body, else a GET. Raises: as Call.ask."""
    method = "GET" if body is None else "POST"
    return Call(address, timeout_s=timeout_s).ask(method, path, body)


def _content(status: int, text: bytes) -> Any:
    try:
        content = json.loads(text) if text.strip() else None
    except ValueError:
        content = None
    if status == 200:
        return content
    told: Any = content.get("error", content) if isinstance(content, dict) else text.decode()
    if isinstance(told, dict):
        told = told.get("message", told)
    message = f"HTTP {status}: {' '.join(str(told).split())[:SAID_CHARS]}"
    if status >= 500 or status in (408, 429):
        raise ServerFailedError(message)
    raise ServerRefusedError(message, status=status)
