"""OpenAI's chat completions: requests read and checked, replies and errors in their form."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlcli.envs.calls import Schema

MODEL = "policy"
"""Name under which the endpoint lists its model; a request may name any."""
ROLES = ("system", "user", "assistant", "tool")
REFUSED = {
    "functions": "give tools instead",
    "logit_bias": "the policy is sampled as it is",
    "audio": "the policy writes text",
    "prediction": "the policy writes every token itself",
}
"""Fields that would change what is sampled and cannot be honoured -> why."""


class ApiError(Exception):
    """An error in OpenAI's form. No status is one that clients send a request again for."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param

    def body(self) -> dict[str, Any]:
        """The JSON of the reply."""
        kind = "invalid_request_error" if self.status != 401 else "authentication_error"
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenCall:
    """One tool call of a message. arguments: a JSON string."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMessage:
    """A message of a request, its content as one text. call_id: of a tool's reply."""

    role: str
    content: str = ""
    tool_calls: tuple[WrittenCall, ...] = ()
    call_id: str = ""

    def rendered(self) -> dict[str, Any]:
        """The message in the form of chat templates, with arguments as an object."""
        message: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": _object(call.arguments)},
                }
                for call in self.tool_calls
            ]
        if self.call_id:
            message["tool_call_id"] = self.call_id
        return message

    def plain(self) -> dict[str, str]:
        """Role and text, for logs."""
        calls = [f"{call.name}({call.arguments})" for call in self.tool_calls]
        text = "\n".join([self.content, *calls] if self.content else calls)
        return {"role": self.role, "content": text}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A checked request. max_tokens: None: the run's limit. stop: texts that end the reply."""

    messages: tuple[ChatMessage, ...]
    tools: tuple[Schema, ...] = ()
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False
    wants_logprobs: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRequest:
    """A request of `/inference/v1/generate`: token ids in, token ids out."""

    token_ids: tuple[int, ...]
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What was sampled for a request. pieces: each token's text, for log-probs."""

    message: ChatMessage
    finish_reason: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    num_prompt_tokens: int
    pieces: tuple[str, ...] = field(default=())


def read_chat(body: Mapping[str, Any]) -> ChatRequest:
    """Raises: ApiError for what is malformed, or cannot be honoured."""
    for name, why in REFUSED.items():
        if body.get(name):
            raise ApiError(f"{name} is not supported: {why}.", param=name)
    if body.get("n") not in (None, 1):
        raise ApiError("n must be 1: each call is one turn of its episode.", param="n")
    kind = (body.get("response_format") or {"type": "text"}).get("type")
    if kind != "text":
        raise ApiError(
            f"response_format {kind} is not supported: replies are not constrained.",
            param="response_format",
        )
    if body.get("top_logprobs"):
        raise ApiError(
            "top_logprobs is not supported: only the sampled tokens' log-probs are kept.",
            param="top_logprobs",
        )
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ApiError("messages must be a list of at least one message.", param="messages")
    options = body.get("stream_options") or {}
    return ChatRequest(
        messages=tuple(_message(each, i) for i, each in enumerate(messages)),
        tools=_tools(body),
        max_tokens=_limit(body, "max_completion_tokens", "max_tokens"),
        stop=_stop(body),
        stream=bool(body.get("stream")),
        include_usage=bool(options.get("include_usage")),
        wants_logprobs=bool(body.get("logprobs")),
    )


def read_tokens(body: Mapping[str, Any]) -> TokenRequest:
    """Raises: ApiError if there are no token ids."""
    ids = body.get("token_ids")
    is_list = isinstance(ids, list) and bool(ids)
    if not is_list or not all(isinstance(each, int) and each >= 0 for each in ids or ()):
        raise ApiError("token_ids must be a list of token ids.", param="token_ids")
    assert isinstance(ids, list)
    sampling = body.get("sampling_params") or {}
    if sampling.get("n") not in (None, 1):
        raise ApiError("n must be 1: each call is one turn of its episode.", param="n")
    return TokenRequest(token_ids=tuple(ids), max_tokens=_limit(sampling, "max_tokens"))


def chat_reply(
    one: Completion, request: ChatRequest, *, number: str, time_s: int
) -> dict[str, Any]:
    """The JSON of a reply that is not streamed. number: its id. time_s: seconds since 1970."""
    choice: dict[str, Any] = {
        "index": 0,
        "message": _written(one.message),
        "finish_reason": one.finish_reason,
        "logprobs": _logprobs(one) if request.wants_logprobs else None,
    }
    head = _head(number, time_s, "chat.completion")
    return {**head, "choices": [choice], "usage": _usage(one)}


def chat_chunks(
    one: Completion, request: ChatRequest, *, number: str, time_s: int
) -> Iterator[dict[str, Any]]:
    """The JSON of each event of a streamed reply; the whole text is one event."""
    head = _head(number, time_s, "chat.completion.chunk")
    delta = _written(one.message)
    for index, call in enumerate(delta.get("tool_calls", ())):
        call["index"] = index
    logprobs = _logprobs(one) if request.wants_logprobs else None
    usage = {"usage": None} if request.include_usage else {}
    first = {"index": 0, "delta": delta, "finish_reason": None, "logprobs": logprobs}
    last = {"index": 0, "delta": {}, "finish_reason": one.finish_reason, "logprobs": None}
    yield {**head, "choices": [first], **usage}
    yield {**head, "choices": [last], **usage}
    if request.include_usage:
        yield {**head, "choices": [], "usage": _usage(one)}


def token_reply(one: Completion, *, number: str) -> dict[str, Any]:
    """The JSON of a reply of `/inference/v1/generate`, as vLLM writes it."""
    content = [
        {"token": f"token_id:{token}", "logprob": value, "bytes": None, "top_logprobs": []}
        for token, value in zip(one.token_ids, one.logprobs, strict=True)
    ]
    choice = {
        "index": 0,
        "token_ids": list(one.token_ids),
        "finish_reason": "length" if one.finish_reason == "length" else "stop",
        "logprobs": {"content": content},
    }
    return {"request_id": number, "choices": [choice], "usage": _usage(one)}


def model_list(max_tokens: int) -> dict[str, Any]:
    """The reply of `/v1/models`. max_tokens: of prompt and reply together."""
    model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "rlcli"}
    return {"object": "list", "data": [{**model, "max_model_len": max_tokens}]}


def canonical(arguments: str) -> str:
    """A call's arguments in one spelling, to compare them."""
    try:
        return json.dumps(json.loads(arguments), sort_keys=True)
    except (ValueError, RecursionError):
        return arguments


def _message(given: Any, place: int) -> ChatMessage:
    where = f"messages[{place}]"
    if not isinstance(given, Mapping):
        raise ApiError(f"{where} must be an object.", param=where)
    role = "system" if given.get("role") == "developer" else given.get("role")
    if role not in ROLES:
        raise ApiError(f"{where}.role must be one of {', '.join(ROLES)}.", param=where)
    calls = tuple(_call(each, where) for each in given.get("tool_calls") or ())
    content = _text(given.get("content"), where)
    if given.get("content") is None and not calls and role != "assistant":
        raise ApiError(f"{where}.content is missing.", param=where)
    call_id = str(given.get("tool_call_id") or "")
    return ChatMessage(role=role, content=content, tool_calls=calls, call_id=call_id)


def _text(content: Any, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [each for each in content if isinstance(each, Mapping)]
        texts = [part.get("text") for part in parts if part.get("type") == "text"]
        if len(texts) == len(content) and all(isinstance(text, str) for text in texts):
            return "".join(map(str, texts))
    raise ApiError(f"{where}.content must be text: the policy reads no images.", param=where)


def _call(given: Any, where: str) -> WrittenCall:
    function = given.get("function") if isinstance(given, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ApiError(f"{where}.tool_calls must be calls of functions.", param=where)
    arguments = function.get("arguments") or "{}"
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return WrittenCall(id=str(given.get("id") or ""), name=function["name"], arguments=text)


def _tools(body: Mapping[str, Any]) -> tuple[Schema, ...]:
    choice = body.get("tool_choice") or "auto"
    if choice not in ("auto", "none"):
        raise ApiError(
            "tool_choice must be auto or none: the policy decides by itself.", param="tool_choice"
        )
    tools = body.get("tools") or []
    for each in tools if isinstance(tools, list) else [None]:
        function = each.get("function") if isinstance(each, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ApiError("tools must be a list of functions with names.", param="tools")
    return tuple(tools) if choice == "auto" else ()


def _limit(body: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = body.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or value < 1:
            raise ApiError(f"{name} must be a whole number from 1.", param=name)
        return value
    return None


def _stop(body: Mapping[str, Any]) -> tuple[str, ...]:
    stop = body.get("stop") or []
    texts = [stop] if isinstance(stop, str) else stop
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise ApiError("stop must be a text or a list of texts.", param="stop")
    for text in texts:
        text.encode()  # raises for half a surrogate pair, which no text of the policy has
    return tuple(texts)


def _head(number: str, time_s: int, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{number}", "object": kind, "created": time_s, "model": MODEL}


def _written(message: ChatMessage) -> dict[str, Any]:
    """The assistant's message in OpenAI's form."""
    out: dict[str, Any] = {"role": "assistant", "content": message.content}
    if message.tool_calls:
        out["content"] = message.content or None
        out["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    return out


def _usage(one: Completion) -> dict[str, int]:
    prompt, own = one.num_prompt_tokens, len(one.token_ids)
    return {"prompt_tokens": prompt, "completion_tokens": own, "total_tokens": prompt + own}


def _logprobs(one: Completion) -> dict[str, Any]:
    content = [
        {"token": piece, "logprob": value, "bytes": list(piece.encode()), "top_logprobs": []}
        for piece, value in zip(one.pieces, one.logprobs, strict=True)
    ]
    return {"content": content, "refusal": None}


def _object(text: str) -> Any:
    """A call's arguments as an object; the text itself if they are not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def texts_of(messages: Sequence[ChatMessage]) -> tuple[dict[str, str], ...]:
    """Messages as role and text."""
    return tuple(message.plain() for message in messages)
