"""OpenAI's chat completions: OpenAI, DashScope and every compatible server."""

from __future__ import annotations

from typing import Any

import openai

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

OPTIONAL = frozenset({"temperature", "max_tokens"})
UNSUPPORTED = ("unsupported_parameter", "unsupported_value")


class OpenAIConnection:
    """A `Connection` through AsyncOpenAI, without its retries."""

    def __init__(self, access: Access) -> None:
        self._access = access
        # OpenAI's newer models refuse max_tokens, many compatible servers know nothing else.
        is_openai = access.provider == "openai" and not access.has_own_url
        self._is_modern = is_openai
        self._refused: frozenset[str] = frozenset()
        self._client = openai.AsyncOpenAI(
            api_key=access.key,
            base_url=access.base_url,
            max_retries=0,
            timeout=None,
            http_client=http_client(access),
        )
        self._ask = self._client.chat.completions.with_raw_response.create

    async def ask(self, request: Request) -> Reply:
        """The answer to one call, tried once. Raises: Fault."""
        access = self._access
        try:
            body, refused = await self._create(request)
        except openai.APIStatusError as error:
            raise from_answer(access.provider, error, key=access.key) from None
        except Exception as error:  # whatever a connection can die of
            raise no_answer(error, key=access.key) from None
        reply = read_answer(body, _read, key=access.key)
        # Learnt for the run only now that the laxer form is answered.
        self._refused |= refused
        return reply

    async def close(self) -> None:
        """Give the sockets back."""
        await self._client.close()

    async def _create(self, request: Request) -> tuple[bytes, frozenset[str]]:
        """(the answer, parameters that were left out for it): newer models take fewer."""
        refused = self._refused
        while True:
            try:
                answer = await self._ask(**self._arguments(request, refused))
                return answer.http_response.content, refused
            except openai.BadRequestError as error:
                more = _refused_by(error)
                if more <= refused:
                    raise
                refused |= more

    def _arguments(self, request: Request, refused: frozenset[str]) -> dict[str, Any]:
        is_modern = self._is_modern or "max_tokens" in refused
        body: dict[str, Any] = {
            "messages": [
                *([{"role": "system", "content": request.system}] if request.system else []),
                {"role": "user", "content": request.user},
            ],
            "max_completion_tokens" if is_modern else "max_tokens": request.max_tokens,
        }
        if "temperature" not in refused:
            body["temperature"] = request.temperature
        if request.mode != "text":
            body["response_format"] = _response_format(request)
        # As extra_body it is sent as it is; the SDK's own walk over it costs 0.3 ms a call.
        return {"model": self._access.model, "messages": (), "extra_body": body}


def _refused_by(error: openai.BadRequestError) -> frozenset[str]:
    """Of the parameters that can be left out, those a 400 names in fields made for machines.

    Its message may quote the response that was judged; it counts beside a code that says so.
    """
    named = frozenset(name for name in OPTIONAL if name == error.param)
    if not named and error.code in UNSUPPORTED:
        named = frozenset(name for name in OPTIONAL if name in error.message)
    return named


def _response_format(request: Request) -> dict[str, Any]:
    if request.mode == "json_object":
        return {"type": "json_object"}
    schema = {"name": "verdict", "strict": True, "schema": request.schema}
    return {"type": "json_schema", "json_schema": schema}


def _read(answer: Any) -> Reply:
    choice = answer["choices"][0]
    message = choice["message"]
    usage = fields(answer.get("usage"))
    finish = choice.get("finish_reason")
    is_blocked = bool(message.get("refusal")) or finish == "content_filter"
    return Reply(
        text=content_text(message.get("content")),
        finish="blocked" if is_blocked else "length" if finish == "length" else "stop",
        input_tokens=count(usage.get("prompt_tokens")),
        output_tokens=count(usage.get("completion_tokens")),
        model=text_of(answer.get("model")),
    )
