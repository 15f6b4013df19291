"""An environment that an OpenEnv server offers: one websocket session for each episode."""

from __future__ import annotations

import importlib
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar
from urllib.parse import urlsplit

from rlcli.envs.sources import EnvLoadError

_client: Any = importlib.import_module("websockets.sync.client")
LIMIT_S = 20.0
TOOL = "act"
"""Tool by which a policy gives an action of several fields."""
OF_THE_ENVELOPE = ("metadata", "done", "reward", "rubric_reward")
PLAIN = ("string", "integer", "number", "boolean")
MAX_MESSAGE = 100 << 20
WAIT_SHARE = 0.8
"""Share of a step's time in which the server must answer; after all of it the process is killed,
and with it other episodes."""


class ServerError(Exception):
    """The server answered with an error."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{text} ({code})" if code else text)
        self.code = code


def names() -> list[str]:
    """A server has one environment, without a name."""
    return []


def load(name: str, args: Mapping[str, Any]) -> type[OpenEnv]:
    """The environment of the server at URL `name`. args: go to its reset. Raises: EnvLoadError."""
    url = name if "://" in name else f"http://{name}"
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https", "ws", "wss") or not parts.netloc:
        raise EnvLoadError(f"openenv:{name}: expected a URL such as http://127.0.0.1:8000.")
    is_secure = parts.scheme in ("https", "wss")
    rest = f"{parts.netloc}{parts.path.rstrip('/')}"
    schema = _read_schema(f"{'https' if is_secure else 'http'}://{rest}/schema", name)
    given = dict(args)
    field = given.pop("action", None)
    fields = schema.get("properties") or {}
    own = {key: value for key, value in fields.items() if key not in OF_THE_ENVELOPE}
    if field is not None and field not in own:
        raise EnvLoadError(
            f"env.args.action={field}: an action of openenv:{name} has {', '.join(own) or 'none'}."
        )
    if field is None and len(own) == 1:
        (only,) = own
        field = only if own[only].get("type") in PLAIN else None
    made = {
        "url": f"{'wss' if is_secure else 'ws'}://{rest}/ws",
        "given": given,
        "field": field,
        "kind": own[field].get("type") if field else None,
        "tools": () if field else (_tool({**schema, "properties": own}),),
    }
    return type("OpenEnv", (OpenEnv,), made)


class OpenEnv:
    """A session. An action of one plain field is the reply's text; others come by a tool."""

    url: str
    given: Mapping[str, Any]
    field: str | None
    kind: str | None
    tools: ClassVar[Sequence[Mapping[str, Any]]] = ()
    timeout_s = 30.0

    def reset(self, task: Mapping[str, Any], seed: int) -> list[dict[str, str]]:
        """Begin an episode; columns of a task go to the server's reset."""
        limit_s = WAIT_SHARE * self.timeout_s
        begun = time.monotonic()
        self._session = ExitStack()
        self._socket = self._session.enter_context(
            _client.connect(
                self.url, open_timeout=min(LIMIT_S, limit_s), max_size=MAX_MESSAGE, proxy=None
            )
        )
        left_s = limit_s - (time.monotonic() - begun)
        answer = self._ask("reset", {**task, **self.given, "seed": seed}, left_s)
        return _shown(answer)

    def step(self, reply: Any) -> dict[str, Any]:
        """Take the reply's action. A bad action is an error that the policy sees."""
        try:
            action = self._action(reply)
            answer = self._ask("step", action, WAIT_SHARE * self.timeout_s)
        except ServerError as error:
            if error.code != "VALIDATION_ERROR":
                raise
            return {"messages": f"Error: {error}"}
        except ValueError as error:
            return {"messages": f"Error: {error}"}
        return {
            "messages": _shown(answer),
            "reward": answer.get("reward"),
            "done": bool(answer.get("done")),
        }

    def close(self) -> None:
        """End the session."""
        self._session.close()

    def _action(self, reply: Any) -> Any:
        if self.field is not None:
            return {self.field: _value(reply.text.strip(), self.kind)}
        if not reply.tool_calls:
            raise ValueError(f"call the tool {TOOL} to act")
        return reply.tool_calls[0]["arguments"]

    def _ask(self, kind: str, data: Any, limit_s: float) -> dict[str, Any]:
        """Raises: ServerError; TimeoutError after limit_s."""
        self._socket.send(json.dumps({"type": kind, "data": data}))
        try:
            answer = json.loads(self._socket.recv(timeout=max(0.0, limit_s)))
        except TimeoutError:
            raise TimeoutError(f"the server did not answer {kind} in time") from None
        found = answer.get("data") or {}
        if answer.get("type") == "error":
            raise ServerError(str(found.get("code", "")), str(found.get("message", "an error")))
        return found


def _read_schema(url: str, name: str) -> dict[str, Any]:
    """The JSON schema of an action. Raises: EnvLoadError if no server answers."""
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=LIMIT_S) as answer:
            found = json.load(answer)
        return dict(found["action"])
    except (OSError, urllib.error.URLError) as error:
        why = getattr(error, "reason", error)
        raise EnvLoadError(
            f"openenv:{name}: no server answers ({why}). Start it, and give its URL."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise EnvLoadError(f"openenv:{name}: {url} is not that of an OpenEnv server.") from error


def _tool(schema: Mapping[str, Any]) -> dict[str, Any]:
    described = schema.get("description") or "Act in the environment."
    parameters = {"type": "object", **{key: schema[key] for key in KEPT if key in schema}}
    return {
        "type": "function",
        "function": {"name": TOOL, "description": described, "parameters": parameters},
    }


KEPT = ("properties", "required", "$defs")


def _value(text: str, kind: str | None) -> Any:
    """The text as a value of a type. Raises: ValueError that says what is expected."""
    if kind == "string":
        return text
    try:
        if kind == "integer":
            return int(text)
        if kind == "number":
            return float(text)
        return {"true": True, "false": False}[text.lower()]
    except (ValueError, KeyError):
        raise ValueError(f"expected a value of type {kind}, got {text[:80]!r}") from None


def _shown(answer: Mapping[str, Any]) -> list[dict[str, str]]:
    """An observation as a message: its only text, else JSON."""
    given = answer.get("observation")
    if not isinstance(given, Mapping):
        return [{"role": "user", "content": str(given)}] if given is not None else []
    told = {k: v for k, v in given.items() if k not in OF_THE_ENVELOPE and v is not None}
    texts = [value for value in told.values() if isinstance(value, str)]
    content = texts[0] if len(told) == 1 and texts else json.dumps(told, ensure_ascii=False)
    return [{"role": "user", "content": content}]
