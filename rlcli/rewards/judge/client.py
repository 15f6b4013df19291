"""One way to ask a judge, whichever SDK speaks for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from rlcli.config.rewards import JudgeConfig
from rlcli.rewards.judge.faults import Fault, Kind, short
from rlcli.rewards.judge.providers import PROVIDERS, find_base_url, find_key, find_model

if TYPE_CHECKING:
    import httpx2

Mode = Literal["json_schema", "json_object", "text"]
MODES: tuple[Mode, ...] = ("json_schema", "json_object", "text")
"""How the form of a reply is asked for, strictest first; servers differ in what they support."""
TEXT_PARTS = ("text", "output_text")
SECRET_CHARACTERS = 8
"""A shorter key is none: servers without keys take any word, which may be one of a verdict's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One call. max_tokens: of the reply, a model's thinking included.

    system: empty for servers that refuse the role. temperature: sent where the provider takes one.
    """

    system: str
    user: str
    mode: Mode
    schema: Mapping[str, Any]
    max_tokens: int
    temperature: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A proper answer. Token counts are None where the server did not say; model likewise."""

    text: str
    finish: Literal["stop", "length", "blocked"]
    input_tokens: int | None
    output_tokens: int | None
    model: str | None


class Connection(Protocol):
    """A client of one provider with one key."""

    async def ask(self, request: Request) -> Reply:
        """The answer to one call, tried once. Raises: Fault."""
        ...

    async def close(self) -> None:
        """Give the sockets back."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Access:
    """Where and as whom. No repr: it holds the key."""

    provider: str
    model: str
    key: str
    base_url: str
    has_own_url: bool
    concurrency: int


def access_of(config: JudgeConfig, env: Mapping[str, str]) -> Access:
    """What a connection needs. Raises: RewardError for a key, model or address that is missing."""
    # the key last: on a machine without one the rest is checked all the same
    model, base_url = find_model(config), find_base_url(config)
    return Access(
        provider=config.provider,
        model=model,
        key=find_key(PROVIDERS[config.provider], env),
        base_url=base_url,
        has_own_url=config.base_url is not None,
        concurrency=config.concurrency,
    )


def http_client(access: Access) -> httpx2.AsyncClient:
    """One pool of connections. It follows no redirect: the key stays with the address given.

    No timeout of its own: a read timeout never fires on a slow drip, so the caller holds the clock.
    """
    import httpx2

    limits = httpx2.Limits(
        max_connections=access.concurrency, max_keepalive_connections=access.concurrency
    )
    return httpx2.AsyncClient(timeout=None, limits=limits, follow_redirects=False)


def verdict_schema(scale: tuple[int, int]) -> dict[str, Any]:
    """JSON schema of a verdict: the reason first, so that the score follows from it."""
    return {
        "type": "object",
        "properties": {
            "reason": {"type": "string"},
            "score": {"type": "integer", "enum": list(range(scale[0], scale[1] + 1))},
        },
        "required": ["reason", "score"],
        "additionalProperties": False,
    }


def read_answer(body: str | bytes, read: Callable[[Any], Reply], *, key: str) -> Reply:
    """What `read` makes of the JSON that came with status 200.

    The SDKs' own models take 0.1 ms a call to build, and read pages and errors as answers.
    Raises: Fault for a page, an error object, or anything else that is no answer.
    """
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        page = short(body if isinstance(body, str) else body.decode("utf-8", "replace"), key)
        text = f"200 with a page: {page}" if page else "empty 200"
        raise Fault(Kind.TRANSIENT, text, is_billed=True) from None
    try:
        return _without_key(read(answer), key)
    except (AttributeError, TypeError, IndexError, KeyError):
        error = answer.get("error") if isinstance(answer, dict) else None
        text = f"200 with an error: {short(str(error), key)}" if error else "empty 200"
        raise Fault(Kind.TRANSIENT, text, is_billed=True) from None


def _without_key(reply: Reply, key: str) -> Reply:
    """A server may repeat what it was sent, and what a judge says is kept."""
    if len(key) < SECRET_CHARACTERS or key not in f"{reply.text}{reply.model}":
        return reply
    model = reply.model and reply.model.replace(key, "***")
    return replace(reply, text=reply.text.replace(key, "***"), model=model)


def count(value: Any) -> int | None:
    """A token count, or None for anything that is none."""
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return value if is_count else None


def fields(value: Any) -> Mapping[str, Any]:
    """The value where it is an object; an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def text_of(value: Any) -> str | None:
    """The value where it is a text."""
    return value if isinstance(value, str) else None


def content_text(content: Any) -> str:
    """The text of a message: a string, or the text parts of a list, without thinking parts.

    Raises: TypeError for any other content.
    """
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, list):
        raise TypeError(f"content is a {type(content).__name__}")
    return "".join(map(_part_text, content))


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    part = fields(part)
    return text_of(part.get("text")) or "" if part.get("type", "text") in TEXT_PARTS else ""
