"""One episode of calls, recorded token by token: which conversation each call goes on with.

A call whose messages extend a recorded conversation is its next turn: the tokens that the policy
wrote stay as they were sampled, and only the new messages are encoded. Any other call begins a
conversation of its own. One that goes on after an earlier turn copies the tokens up to there.
"""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from rlcli.data.readers import Row
from rlcli.data.rendering import ChatFormat
from rlcli.envs.calls import Calls, Schema, ToolCall
from rlcli.envs.chat import (
    ApiError,
    ChatMessage,
    ChatRequest,
    Completion,
    TokenRequest,
    WrittenCall,
    canonical,
    texts_of,
)
from rlcli.envs.dialogue import Dialogue
from rlcli.errors import DataError, ModelError
from rlcli.types import FinishReason, Rollout, Turn

_THOUGHT = re.compile(r"\A\s*(?:<think>)?.*?</think>", re.DOTALL)
_CALL = re.compile(r"<tool_call>.*?</tool_call>", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLimits:
    """Bounds in tokens: of a conversation's first messages, of what follows them, of a turn.

    max_turns: calls of an episode. max_turn_tokens: None: only the row is bounded.
    """

    max_prompt_tokens: int
    max_row_tokens: int
    max_turn_tokens: int | None
    max_turns: int


class ChatTexts:
    """Messages to tokens and back, for one tokenizer. Used by one thread at a time.

    end_ids: tokens that end a turn. template_kwargs: variables of the chat template.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        end_ids: Sequence[int],
        tool_format: str,
        system_prompt: str | None,
        template_kwargs: Mapping[str, Any],
        max_reply_tokens: int,
    ) -> None:
        self.tokenizer, self._end_ids, self._tool_format = tokenizer, end_ids, tool_format
        self._system_prompt, self._kwargs = system_prompt, template_kwargs
        self._max_reply_tokens = max_reply_tokens
        self._dialogues: dict[str, Dialogue] = {}

    def dialogue(self, tools: Sequence[Schema]) -> Dialogue:
        """The turns with these tools. Raises: ModelError if the chat template cannot hold them."""
        key = _key_of_tools(tools)
        if key not in self._dialogues:
            self._dialogues[key] = Dialogue(
                self.tokenizer,
                end_ids=self._end_ids,
                schemas=tools,
                tool_format=self._tool_format,
                template_kwargs=self._kwargs,
                max_reply_tokens=self._max_reply_tokens,
                replies_are_tools=bool(tools),
            )
        return self._dialogues[key]

    def encode(self, messages: Sequence[ChatMessage], tools: Sequence[Schema]) -> tuple[int, ...]:
        """First messages as tokens. Raises: DataError if the chat template refuses them."""
        from rlcli.data.prompts import prompt_tokens

        kwargs = {**self._kwargs, **({"tools": list(tools)} if tools else {})}
        row = Row(id="messages", prompt=tuple(message.rendered() for message in messages))
        chat = ChatFormat(system_prompt=self._system_prompt, template_kwargs=kwargs)
        return prompt_tokens([row], self.tokenizer, chat)[0][0]


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """A conversation as it stood after a turn. messages: () for calls in tokens.

    num_ids: tokens after its prompt. turn_ids: of the turn. calls: those that it made.
    """

    num_ids: int
    turn_ids: tuple[int, ...]
    messages: tuple[ChatMessage, ...] = ()
    calls: tuple[ToolCall, ...] = ()


@dataclass(slots=True, kw_only=True, eq=False)
class Conversation:
    """A row: `prompt_ids | ids`, mask 1 on the tokens that the policy wrote.

    tools: key of the tools shown. is_busy: its next turn is being sampled.
    """

    prompt_ids: tuple[int, ...]
    tools: str = ""
    ids: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])
    mask: list[int] = field(default_factory=list[int])
    states: list[_State] = field(default_factory=list[_State])
    is_busy: bool = False

    def add_given(self, ids: Sequence[int]) -> None:
        """Append masked tokens, such as the agent's messages."""
        self.ids += ids
        self.logprobs += [0.0] * len(ids)
        self.mask += [0] * len(ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenCall:
    """A call that is ready to be sampled.

    given: tokens between the conversation so far and the turn. index: what the draws depend on.
    max_tokens: of the turn. opening: messages that are new in this call.
    """

    conversation: Conversation
    request: ChatRequest | TokenRequest
    given: tuple[int, ...]
    index: int
    max_tokens: int
    opening: tuple[ChatMessage, ...]
    wait_s: float

    @property
    def context(self) -> tuple[int, ...]:
        """All tokens before the turn."""
        return (*self.conversation.prompt_ids, *self.conversation.ids, *self.given)

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts that end the turn."""
        return self.request.stop if isinstance(self.request, ChatRequest) else ()


class Recorder:
    """The calls of one episode. place: the episode's number, on which its draws depend.

    cut: the limit that stopped the episode. refusal: why the last refused call was refused.
    num_refused: calls refused since the last that was not.
    """

    def __init__(self, texts: ChatTexts, limits: RowLimits, *, place: int) -> None:
        self._texts, self._limits, self._place = texts, limits, place
        self.conversations: list[Conversation] = []
        self.turns: list[Turn] = []
        self.first_messages: tuple[ChatMessage, ...] = ()
        self.cut: Literal["length", "turns"] | None = None
        self.refusal: str | None = None
        self.num_refused = 0
        self.last: Rollout | None = None
        self._last_conversation: Conversation | None = None
        self._num_opened = 0
        self._seen: Counter[tuple[int, ...]] = Counter()

    def open(self, request: ChatRequest | TokenRequest, *, wait_s: float = 0.0) -> OpenCall:
        """The conversation that a call goes on with, or a new one.

        wait_s: seconds since the answer before. Raises: ApiError over a limit, or if the chat
        template cannot show the messages.
        """
        try:
            call = self._open(request, wait_s)
        except ApiError as error:
            self.refusal = str(error)
            self.num_refused += 1
            raise
        self.num_refused = 0
        return call

    def _open(self, request: ChatRequest | TokenRequest, wait_s: float) -> OpenCall:
        if self._num_opened >= self._limits.max_turns:
            self.cut = "turns"
            raise ApiError(
                f"the episode has had its {self._limits.max_turns} turns (env.max_turns).",
                code="max_turns",
            )
        if isinstance(request, TokenRequest):
            conversation, given, opening = self._open_tokens(request)
        else:
            conversation, given, opening = self._open_chat(request)
        max_tokens = self._max_tokens(conversation, given, request.max_tokens)
        context = (*conversation.prompt_ids, *conversation.ids, *given)
        key = repr((self._place, context, self._seen[context]))
        self._seen[context] += 1
        if not self._num_opened:
            self.first_messages = opening
        self._num_opened += 1
        conversation.is_busy = True
        return OpenCall(
            conversation=conversation,
            request=request,
            given=given,
            index=zlib.crc32(key.encode()),
            max_tokens=max_tokens,
            opening=opening,
            wait_s=wait_s,
        )

    def finish(self, call: OpenCall, one: Rollout) -> Completion:
        """Record what was sampled, and the reply that the agent gets."""
        conversation, prompt_ids = call.conversation, call.context
        if not conversation.states:
            self.conversations.append(conversation)
        conversation.add_given(call.given)
        conversation.ids += one.token_ids
        conversation.logprobs += one.logprobs
        conversation.mask += [1] * len(one.token_ids)
        conversation.is_busy = False
        if self.cut == "length":  # the agent has found a way on; after max_turns there is none
            self.cut = None
        calls, message = self._message(call, one, prompt_ids)
        messages = call.request.messages if isinstance(call.request, ChatRequest) else ()
        conversation.states.append(
            _State(
                num_ids=len(conversation.ids),
                turn_ids=one.token_ids,
                messages=(*messages, message) if messages else (),
                calls=tuple(calls.calls),
            )
        )
        self._note_turn(call, one, calls)
        reason = "tool_calls" if message.tool_calls else one.finish_reason
        wants = isinstance(call.request, ChatRequest) and call.request.wants_logprobs
        pieces = [self._texts.tokenizer.decode([token]) for token in one.token_ids if wants]
        return Completion(
            message=message,
            finish_reason=reason,
            token_ids=one.token_ids,
            logprobs=one.logprobs,
            num_prompt_tokens=len(prompt_ids),
            pieces=tuple(pieces),
        )

    @property
    def finish_reason(self) -> FinishReason:
        """How the episode ended: by a limit, or as its last turn did."""
        if self.cut is not None:
            return self.cut
        return "stop" if self.last is None else self.last.finish_reason

    def rows(self) -> list[Conversation]:
        """The conversations with a turn, that of the last call first."""
        whole = [each for each in self.conversations if each.states]
        return sorted(whole, key=lambda each: each is not self._last_conversation)

    def _open_chat(
        self, request: ChatRequest
    ) -> tuple[Conversation, tuple[int, ...], tuple[ChatMessage, ...]]:
        tools = _key_of_tools(request.tools)
        try:
            dialogue = self._texts.dialogue(request.tools)
            if (found := self._find_chat(request.messages, tools)) is not None:
                conversation, state = found
                new = request.messages[len(state.messages) :]
                ids = dialogue.go_on(state.turn_ids, _replies(new, state), state.calls)
                return self._continued(conversation, state), ids, new
            prompt_ids = self._texts.encode(request.messages, request.tools)
        except (ModelError, DataError) as error:
            raise ApiError(str(error), param="messages") from error
        except Exception as error:  # of the chat template, which may refuse what it is given
            raise ApiError(
                f"the chat template cannot show these messages: {error}", param="messages"
            ) from error
        self._check_prompt(prompt_ids)
        return Conversation(prompt_ids=prompt_ids, tools=tools), (), request.messages

    def _open_tokens(
        self, request: TokenRequest
    ) -> tuple[Conversation, tuple[int, ...], tuple[ChatMessage, ...]]:
        ids, num_known = request.token_ids, len(self._texts.tokenizer)
        if max(ids, default=0) >= num_known:
            raise ApiError(f"token_ids must be below {num_known}.", param="token_ids")
        best: tuple[int, Conversation, _State] | None = None
        for conversation in self.conversations:
            for state in conversation.states:
                known = (*conversation.prompt_ids, *conversation.ids[: state.num_ids])
                if ids[: len(known)] == known and (best is None or len(known) > best[0]):
                    best = len(known), conversation, state
        if best is None:
            self._check_prompt(ids)
            text = self._texts.tokenizer.decode(ids)
            return Conversation(prompt_ids=ids), (), (ChatMessage(role="user", content=text),)
        length, conversation, state = best
        given = ids[length:]
        text = self._texts.tokenizer.decode(given)
        new = ChatMessage(role="user", content=text)
        return self._continued(conversation, state), given, (new,)

    def _find_chat(
        self, messages: Sequence[ChatMessage], tools: str
    ) -> tuple[Conversation, _State] | None:
        """The recorded turn that the messages continue, the latest that there is."""
        keys = [_key(message) for message in messages]
        found: tuple[Conversation, _State] | None = None
        for conversation in self.conversations:
            for state in conversation.states if conversation.tools == tools else ():
                known, new = state.messages, messages[len(state.messages) :]
                fits = new and all(message.role != "assistant" for message in new)
                longer = found is None or len(known) > len(found[1].messages)
                if fits and known and longer and keys[: len(known)] == [*map(_key, known)]:
                    found = conversation, state
        return found

    def _continued(self, conversation: Conversation, state: _State) -> Conversation:
        """The conversation itself at its last turn; else a copy up to this turn, masked."""
        if state is conversation.states[-1] and not conversation.is_busy:
            return conversation
        copy = Conversation(prompt_ids=conversation.prompt_ids, tools=conversation.tools)
        copy.add_given(conversation.ids[: state.num_ids])
        return copy

    def _check_prompt(self, ids: Sequence[int]) -> None:
        limit = self._limits.max_prompt_tokens
        if not ids:
            raise ApiError("the messages are empty.", param="messages")
        if len(ids) > limit:
            self.cut = "length"
            raise ApiError(
                f"the messages have {len(ids)} tokens, more than data.max_prompt_tokens={limit}.",
                code="context_length_exceeded",
                param="messages",
            )

    def _max_tokens(
        self, conversation: Conversation, given: Sequence[int], asked: int | None
    ) -> int:
        """Most tokens of the turn. Raises: ApiError if the row is full."""
        limits = self._limits
        room = limits.max_row_tokens - len(conversation.ids) - len(given)
        if room < 1:
            self.cut = "length"
            raise ApiError(
                "the conversation is longer than data.max_response_tokens="
                f"{limits.max_row_tokens} after its first messages.",
                code="context_length_exceeded",
                param="messages",
            )
        return min(room, limits.max_turn_tokens or room, asked or room)

    def _message(
        self, call: OpenCall, one: Rollout, prompt_ids: Sequence[int]
    ) -> tuple[Calls, ChatMessage]:
        if isinstance(call.request, TokenRequest) or not call.request.tools:
            return Calls(), ChatMessage(role="assistant", content=one.text)
        dialogue = self._texts.dialogue(call.request.tools)
        calls = dialogue.parse(one.token_ids, prompt_ids)
        written = tuple(
            WrittenCall(
                id=f"call_{zlib.crc32(repr((call.index, number)).encode()):08x}",
                name=each.name,
                arguments=json.dumps(each.arguments, ensure_ascii=False, default=str),
            )
            for number, each in enumerate(calls.calls)
        )
        content = one.text
        if written and not calls.failures:
            content = _beside_calls(content, dialogue.tool_format)
        return calls, ChatMessage(role="assistant", content=content, tool_calls=written)

    def _note_turn(self, call: OpenCall, one: Rollout, calls: Calls) -> None:
        if self.turns:  # what this call brought followed the turn before
            replies = tuple(texts_of([m for m in call.opening if m.role != "assistant"]))
            self.turns[-1] = replace(
                self.turns[-1],
                replies=replies,
                num_reply_tokens=len(call.given),
                wait_s=call.wait_s,
            )
        assert one.finish_reason in ("stop", "length")
        self.turns.append(
            Turn(
                text=one.text,
                num_tokens=len(one.token_ids),
                finish_reason=one.finish_reason,
                tool_calls=tuple(each.name for each in calls.calls),
                parse_failures=len(calls.failures),
            )
        )
        self.last, self._last_conversation = one, call.conversation


def with_tokens(done: Rollout, rows: Sequence[Conversation], *, num_shared: int) -> Rollout:
    """An episode with the tokens of its rows: the first row is its own, others are in `more`.

    num_shared: tokens of the group's prompt, with which each row begins. The rest of a row's first
    messages is masked, like everything that the policy did not write.
    """
    own, *others = [
        replace(
            done,
            prompt=replace(done.prompt, token_ids=row.prompt_ids[:num_shared]),
            token_ids=(*(rest := row.prompt_ids[num_shared:]), *row.ids),
            logprobs=(*[0.0] * len(rest), *row.logprobs),
            mask=(*[0] * len(rest), *row.mask),
        )
        for row in rows
    ]
    more = tuple(replace(each, turns=(), reward=None, text="") for each in others)
    return replace(own, more=more)


def num_shared_tokens(rows: Sequence[Conversation]) -> int:
    """Tokens with which the first messages of all rows begin."""
    prompts = [row.prompt_ids for row in rows]
    columns = zip(*prompts, strict=False)
    return next((i for i, each in enumerate(columns) if len(set(each)) > 1), min(map(len, prompts)))


def _key(message: ChatMessage) -> tuple[Any, ...]:
    """What two spellings of one message have in common.

    Agents hand replies back without the thoughts, without outer spaces, or with null for no text.
    """
    if message.role != "assistant":
        return message.role, message.content
    content = _THOUGHT.sub("", message.content).strip()
    calls = tuple((call.name, canonical(call.arguments)) for call in message.tool_calls)
    return message.role, content, calls


def _key_of_tools(tools: Sequence[Schema]) -> str:
    return json.dumps(list(tools), sort_keys=True) if tools else ""


def _replies(messages: Sequence[ChatMessage], state: _State) -> list[dict[str, str]]:
    """Messages as Dialogue takes them: a tool's reply has the name of its tool."""
    names = {call.id: call.name for call in state.messages[-1].tool_calls}
    out: list[dict[str, str]] = []
    for message in messages:
        reply = {"role": message.role, "content": message.content}
        if message.role == "tool":
            reply["name"] = names.get(message.call_id, "")
        out.append(reply)
    return out


def _beside_calls(text: str, tool_format: str) -> str:
    """The text of a turn without its calls."""
    if tool_format in ("hermes", "xml"):
        return _CALL.sub("", text).strip()
    if tool_format == "mistral":
        return text.partition("[TOOL_CALLS]")[0].strip()
    return text if tool_format == "response" else ""
