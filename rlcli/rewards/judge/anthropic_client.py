"""Anthropic's messages."""

from __future__ import annotations

from typing import Any

import anthropic

from rlcli.rewards.judge.client import (
    Access,
    Reply,
    Request,
    content_text,
    count,
    fields,
    http_client,
    read_answer,
    text_of,
)
from rlcli.rewards.judge.faults import from_answer, no_answer

CUTS = ("max_tokens", "model_context_window_exceeded")
CACHED = ("cache_creation_input_tokens", "cache_read_input_tokens")
"""Tokens read from or written to a cache are not part of input_tokens, but are paid for."""


class ClaudeConnection:
    """A `Connection` through AsyncAnthropic, without its retries: it would sleep for hours."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._client = anthropic.AsyncAnthropic(
            api_key=access.key,
            base_url=access.base_url,
            max_retries=0,
            timeout=None,
            http_client=http_client(access),
        )
        self._ask = self._client.messages.with_raw_response.create

    async def ask(self, request: Request) -> Reply:
        """The answer to one call, tried once. Raises: Fault."""
        access = self._access
        arguments: dict[str, Any] = {
            "model": access.model,
            "max_tokens": request.max_tokens,
            **({"system": request.system} if request.system else {}),
            "messages": [{"role": "user", "content": request.user}],
        }
        # No temperature (anthropic 2 has none), and no JSON without a schema.
        if request.mode == "json_schema":
            form = {"type": "json_schema", "schema": request.schema}
            arguments["output_config"] = {"format": form}
        try:
            answer = await self._ask(**arguments)
        except anthropic.APIStatusError as error:
            raise from_answer(access.provider, error, key=access.key) from None
        except Exception as error:  # whatever a connection can die of
            raise no_answer(error, key=access.key) from None
        return read_answer(answer.http_response.content, _read, key=access.key)

    async def close(self) -> None:
        """Give the sockets back."""
        await self._client.close()


def _read(answer: Any) -> Reply:
    finish = answer.get("stop_reason")
    usage = fields(answer.get("usage"))
    inputs = count(usage.get("input_tokens"))
    if inputs is not None:
        inputs += sum(count(usage.get(name)) or 0 for name in CACHED)
    return Reply(
        text=content_text(answer["content"]),
        finish="blocked" if finish == "refusal" else "length" if finish in CUTS else "stop",
        input_tokens=inputs,
        output_tokens=count(usage.get("output_tokens")),
        model=text_of(answer.get("model")),
    )
