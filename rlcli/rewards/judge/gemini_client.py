"""Google's generateContent through google-genai."""

from __future__ import annotations

import logging
from typing import Any

from google import genai
from google.genai import errors, types

from rlcli.rewards.judge.client import (
    Access,
    Reply,
    Request,
    count,
    fields,
    http_client,
    read_answer,
    text_of,
)
from rlcli.rewards.judge.faults import Fault, Kind, from_status, no_answer

CUT = "MAX_TOKENS"
FINISHED = frozenset({"STOP", "FINISH_REASON_UNSPECIFIED"})
BLOCKED = "BLOCKED"
BLOCKS = frozenset(
    {"SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", BLOCKED}
)
"""Finish reasons that a retry would get again; calls with unknown reasons are retried."""
NO_FUNCTIONS = types.AutomaticFunctionCallingConfig(disable=True)


class GeminiConnection:
    """A `Connection` through genai.Client.

    Everything the SDK would take from the environment is given: Vertex AI, API version, address.
    An httpx client of ours keeps it from aiohttp, with which it retries by itself.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        # It warns on stderr when both of its variables are set; the key given here wins.
        logging.getLogger("google_genai").setLevel(logging.ERROR)
        self._http = http_client(access)
        self._client = genai.Client(
            api_key=access.key,
            vertexai=False,
            http_options=types.HttpOptions(
                base_url=access.base_url, api_version="v1beta", httpx_async_client=self._http
            ),
        )

    async def ask(self, request: Request) -> Reply:
        """The answer to one call, tried once. Raises: Fault."""
        access = self._access
        config = types.GenerateContentConfig(
            system_instruction=request.system or None,
            temperature=request.temperature,
            max_output_tokens=request.max_tokens,
            response_mime_type=None if request.mode == "text" else "application/json",
            response_json_schema=request.schema if request.mode == "json_schema" else None,
            automatic_function_calling=NO_FUNCTIONS,
            # Without it the SDK may go on with answers of its own accord: calls nobody counts.
            should_return_http_response=True,
        )
        try:
            answer = await self._client.aio.models.generate_content(
                model=access.model, contents=request.user, config=config
            )
        except errors.APIError as error:
            headers = getattr(error.response, "headers", None) or {}
            raise from_status(
                access.provider, int(error.code or 0), error.details, headers, key=access.key
            ) from None
        except Exception as error:  # raw transport errors
            raise no_answer(error, key=access.key) from None
        response = answer.sdk_http_response
        return read_answer((response and response.body) or "", _read, key=access.key)

    async def close(self) -> None:
        """Give the sockets back."""
        await self._http.aclose()
        self._client.close()


def _read(answer: Any) -> Reply:
    usage = fields(answer.get("usageMetadata"))
    thoughts = count(usage.get("thoughtsTokenCount")) or 0
    outputs = count(usage.get("candidatesTokenCount"))
    reason, texts = _content(answer)
    return Reply(
        text="".join(texts),
        finish="length" if reason == CUT else "stop" if reason in FINISHED else "blocked",
        input_tokens=count(usage.get("promptTokenCount")),
        output_tokens=None if outputs is None else outputs + thoughts,
        model=text_of(answer.get("modelVersion")),
    )


def _content(answer: Any) -> tuple[str, list[str]]:
    """(finish reason, texts). Raises: Fault if there is no answer and no filter blocked it."""
    candidates = answer.get("candidates")
    if not candidates:
        if fields(answer.get("promptFeedback")).get("blockReason"):
            return BLOCKED, []
        if answer.get("error") or not answer.get("usageMetadata"):
            raise KeyError("candidates")
        raise Fault(Kind.TRANSIENT, "200 without candidates", is_billed=True)
    reason = str(candidates[0].get("finishReason") or "STOP")
    if reason != CUT and reason not in FINISHED | BLOCKS:
        raise Fault(Kind.TRANSIENT, f"finish reason {reason}", is_billed=True)
    parts = fields(candidates[0].get("content")).get("parts") or []
    return reason, [part["text"] for part in parts if part.get("text") and not part.get("thought")]
