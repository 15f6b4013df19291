"""Between turns: calls read from what the model wrote, and the tokens up to its next turn.

What the model wrote is never encoded again. The tokens between two turns come from the chat
template, rendered for a made-up turn before the same replies; a probe proves before weights load
that the template puts them behind a turn as it stands. Without a template, replies are plain text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rlcli.envs.calls import (
    FORMATS,
    Calls,
    Schema,
    ToolCall,
    looks_like_call,
    read_calls,
    sample_call,
    with_types,
    without_thoughts,
)
from rlcli.errors import ModelError
from rlcli.types import Message

WRITTEN = "Xq7"
"""The made-up turn: no template writes this itself."""
CUT_MARK = "\n[cut]\n"
MAX_TOKEN_CHARS = 16
"""Characters for each token of a reply's limit; a longer reply is cut before it is tokenized."""
CANNOT_SHOW = "the chat template cannot show the replies"
_OPEN_THOUGHT = re.compile(r"<think>\s*\Z")
_THOUGHT = re.compile(r"<think>\s*(?:</think>\s*)?\Z")
_THOUGHT_FIRST = re.compile(r"\A<think>\s*(?:</think>\s*)?")


class Dialogue:
    """The turns of episodes for one tokenizer.

    end_ids: tokens that end a turn. schemas: of the tools. template_kwargs: variables of the chat
    template. max_reply_tokens: of one message; a longer one is cut in the middle.

    Raises: ModelError if the template cannot hold the episode, with the cure.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        end_ids: Sequence[int],
        schemas: Sequence[Schema],
        tool_format: str,
        template_kwargs: Mapping[str, Any],
        max_reply_tokens: int,
        replies_are_tools: bool,
    ) -> None:
        self._tokenizer, self._schemas = tokenizer, schemas
        self._names = [schema["function"]["name"] for schema in schemas]
        self._end_ids = set(end_ids)
        self._kwargs = {**template_kwargs, **({"tools": list(schemas)} if schemas else {})}
        self._max_reply_tokens = max_reply_tokens
        self._special = _special_texts(tokenizer)
        self._has_template = bool(tokenizer.chat_template)
        self.notes: list[str] = []
        self._turn_is_call = False
        self.takes_one_call = False
        """Whether the template refuses turns with several calls."""
        self._end_id = self._find_end(end_ids) if self._has_template else next(iter(end_ids))
        if self._has_template:
            self._probe(replies_are_tools)
            self.takes_one_call = bool(schemas) and self._refuses_calls()
        self.tool_format = self._find_format(tool_format) if schemas else ""

    def parse(self, token_ids: Sequence[int], prompt_ids: Sequence[int]) -> Calls:
        """The tool calls of a turn."""
        if not self._schemas:
            return Calls()
        ids = list(token_ids)
        if ids and ids[-1] in self._end_ids:
            ids.pop()
        text = self._tokenizer.decode(ids, skip_special_tokens=False)
        if self.tool_format != "response":  # a tokenizer's own parser knows thoughts
            before = self._tokenizer.decode(list(prompt_ids[-8:]), skip_special_tokens=False)
            opening = _OPEN_THOUGHT.search(before)
            text = without_thoughts(f"{opening[0] if opening else ''}{text}")
        try:
            found = self._parse_text(text, prompt_ids)
            calls = [with_types(call, self._schemas) for call in found.calls]
        except Exception as error:  # no text of the model may end the run
            return Calls(failures=[_first_line(error)])
        if not calls and not found.failures and looks_like_call(text, self._names):
            return Calls(failures=["the call is not in the form that this model's calls have"])
        return Calls(calls=calls, failures=found.failures)

    def go_on(
        self, token_ids: Sequence[int], replies: Sequence[Message], calls: Sequence[ToolCall]
    ) -> tuple[int, ...]:
        """The tokens between a turn and the next one. token_ids: of the turn, as sampled.

        A turn that does not end with an end token gets one.
        """
        is_ended = bool(token_ids) and token_ids[-1] in self._end_ids
        head = () if is_ended else (self._end_id,)
        short = self.shown(replies)
        if not self._has_template:
            return head + tuple(self._encode("\n\n".join(reply["content"] for reply in short)))
        return head + tuple(self._encode(self._between(short, calls)))

    def shown(self, replies: Sequence[Message]) -> list[Message]:
        """Replies as the policy sees them: special tokens broken up, cut to their limit."""
        return [{**reply, "content": self._plain(reply["content"])} for reply in replies]

    def _plain(self, text: str) -> str:
        """A reply without special tokens' spellings, cut to its limit."""
        limit = self._max_reply_tokens
        half = limit * MAX_TOKEN_CHARS // 2
        if len(text) > 2 * half:
            text = f"{text[:half]}{CUT_MARK}{text[-half:]}"
        text = self._broken(text.encode("utf-8", "replace").decode())
        ids = self._encode(text)
        if len(ids) <= limit:
            return text
        room = max(2, limit - len(self._encode(CUT_MARK)))
        half = room // 2
        start, end = ids[:half], ids[len(ids) - (room - half) :]
        cut = f"{self._tokenizer.decode(start)}{CUT_MARK}{self._tokenizer.decode(end)}"
        return self._broken(cut)  # a tokenizer may decode to other text than it encoded

    def _broken(self, text: str) -> str:
        while (broken := self._special.sub(_with_space, text)) != text:
            text = broken
        return text

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _render(self, messages: Sequence[Mapping[str, Any]], *, opens: bool) -> str:
        return self._tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=opens, tokenize=False, **self._kwargs
        )

    def _conversation(
        self, replies: Sequence[Message], calls: Sequence[ToolCall]
    ) -> list[Mapping[str, Any]]:
        """A made-up question and turn, then the replies."""
        turn: dict[str, Any] = {"role": "assistant", "content": WRITTEN}
        known = self._names
        if not known:
            replies = [{**reply, "role": _role(reply["role"])} for reply in replies]
        tools = [reply for reply in replies if reply["role"] == "tool"]
        if self.takes_one_call and len(tools) > 1:
            whole = {**tools[0], "content": "\n\n".join(reply["content"] for reply in tools)}
            replies = [whole, *(reply for reply in replies if reply["role"] != "tool")]
            tools = [whole]
        if tools:
            # a name that the model made up is text of the model: it must not reach the template
            names = [call.name if call.name in known else known[0] for call in calls] or known[:1]
            arguments = {WRITTEN: 1} if self._turn_is_call else {}
            turn["content"] = "" if self._turn_is_call else WRITTEN
            turn["tool_calls"] = [
                {
                    "type": "function",
                    "id": f"call{number:05d}",
                    "function": {
                        "name": names[min(number, len(names) - 1)],
                        "arguments": arguments,
                    },
                }
                for number in range(len(tools))
            ]
            numbers = iter(range(len(tools)))
            replies = [
                {**reply, "tool_call_id": f"call{next(numbers):05d}"}
                if reply["role"] == "tool"
                else reply
                for reply in replies
            ]
        return [{"role": "user", "content": "U"}, turn, *replies]

    def _between(self, replies: Sequence[Message], calls: Sequence[ToolCall]) -> str:
        """The template's text behind the end of the made-up turn. Raises: ValueError."""
        whole = self._render(self._conversation(replies, calls), opens=True)
        end_text = self._tokenizer.convert_ids_to_tokens(self._end_id)
        _, found, rest = whole.partition(WRITTEN)
        _, ended, between = rest.partition(end_text)
        if not found or not ended:
            raise ValueError("the template does not show the turn and its end")
        return between

    def _find_end(self, end_ids: Sequence[int]) -> int:
        """The token with which the template ends a turn."""
        try:
            asked = [{"role": "user", "content": "U"}]
            turn = {"role": "assistant", "content": WRITTEN}
            whole = self._render([*asked, turn, *asked], opens=True)
        except Exception as error:
            raise self._refusal(f"it refuses a second turn: {_first_line(error)}") from error
        rest = whole.partition(WRITTEN)[2]
        found_at = {
            rest.find(text): token
            for token in end_ids
            if (text := self._tokenizer.convert_ids_to_tokens(token)) and text in rest
        }
        if not found_at:
            raise self._refusal("it ends a turn with none of the model's end tokens")
        return found_at[min(found_at)]

    def _probe(self, replies_are_tools: bool) -> None:
        """Raises: ModelError unless the template goes on behind a turn as it stands.

        A template that writes no text beside a call is tried with a turn that is a call.
        """
        if not replies_are_tools:
            if why := self._misfit("user"):
                raise self._refusal(why)
            self._turn_is_call = bool(self._schemas) and self._misfit("tool") is not None
            self._turn_is_call = self._turn_is_call and self._is_fit_with_calls()
        elif why := self._misfit("tool"):
            if not self._is_fit_with_calls():
                raise self._refusal(why)
            self._turn_is_call = True
        if self._drops_thoughts("tool" if replies_are_tools else "user"):
            self.notes.append(
                "the chat template takes thoughts out of earlier turns; episodes keep every turn "
                "as it was written."
            )

    def _is_fit_with_calls(self) -> bool:
        self._turn_is_call = True
        is_fit = self._misfit("tool") is None
        self._turn_is_call = False
        return is_fit

    def _refuses_calls(self) -> bool:
        """Whether the template shows a reply to one call, and none to two."""
        reply = self._made_up_reply("tool")
        if self._misfit("tool") is not None:
            return False
        try:
            self._between([reply, reply], ())
        except Exception:
            return True
        return False

    def _opened(self) -> str:
        return self._render([{"role": "user", "content": "U"}], opens=True)

    def _drops_thoughts(self, role: str) -> bool:
        whole = self._render(self._conversation([self._made_up_reply(role)], ()), opens=True)
        return not whole.startswith(self._opened())

    def _made_up_reply(self, role: str) -> Message:
        reply = {"role": role, "content": "Rz5"}
        return {**reply, "name": self._names[0]} if role == "tool" else reply

    def _misfit(self, role: str) -> str | None:
        """Why the template cannot go on behind a turn with a reply of this role; None: it can."""
        reply = self._made_up_reply(role)
        try:
            opened = self._opened()
            whole = self._render(self._conversation([reply], ()), opens=True)
            between = self._between([reply], ())
        except Exception as error:
            what = "tools" if role == "tool" else "a second turn"
            return f"it has no place for {what}: {_first_line(error)}"
        if "Rz5" not in between:
            return f"it leaves out messages of the role {role}"
        if self._names and self._names[0] not in opened:
            return "it does not show the tools to the model"
        turn = whole.removeprefix(opened)
        if turn == whole:
            bare = _THOUGHT.sub("", opened)
            turn = _THOUGHT_FIRST.sub("", whole.removeprefix(bare))
        written, _, _ = turn.partition(WRITTEN)
        end_text = self._tokenizer.convert_ids_to_tokens(self._end_id)
        if turn == whole or (written and not (self._turn_is_call and end_text not in written)):
            return "it rewrites what stands before a turn"
        ids, behind = self._encode(whole), self._encode(between)
        if ids[len(ids) - len(behind) :] != behind:
            return "its text between turns is not a sequence of whole tokens"
        return None

    def _find_format(self, wanted: str) -> str:
        """How this model writes calls: of the template's own, the first that reads them back."""
        if wanted != "auto":
            return wanted
        if not self._has_template:
            return "hermes"
        if getattr(self._tokenizer, "response_template", None) and self._reads_back("response"):
            return "response"
        for name in FORMATS:
            if self._reads_back(name):
                return name
        raise ModelError(
            "the model's chat template writes tool calls in no form that rlcli reads back.\n"
            f"Set env.tool_format to one of {', '.join(FORMATS)}, or use another model."
        )

    def _reads_back(self, name: str) -> bool:
        """Whether a call of every tool, as the template writes it, is read by this format."""
        for schema in self._schemas:
            call = sample_call(schema)
            function = {"name": call.name, "arguments": dict(call.arguments)}
            made = {"type": "function", "id": "call00000", "function": function}
            turn = {"role": "assistant", "content": "", "tool_calls": [made]}
            try:
                asked = [{"role": "user", "content": "U"}]
                opened = self._render(asked, opens=True)
                whole = self._render([*asked, turn], opens=False)
                start = len(_THOUGHT.sub("", opened)) if not whole.startswith(opened) else 0
                text = whole[start or len(opened) :]
                text = text.partition(self._tokenizer.convert_ids_to_tokens(self._end_id))[0]
                found = self._parse_text(text, self._encode(opened), name)
            except Exception:
                return False
            calls = [with_types(each, self._schemas) for each in found.calls]
            if found.failures or calls != [call]:
                return False
        return True

    def _parse_text(self, text: str, prompt_ids: Sequence[int], name: str | None = None) -> Calls:
        name = name or self.tool_format
        if name != "response":
            return FORMATS[name](text)
        try:
            message = self._tokenizer.parse_response(
                text, prefix=list(prompt_ids), tools=list(self._schemas)
            )
            return read_calls(message.get("tool_calls") or ())
        except Exception as error:  # the parser raises what it likes on what a model writes
            return Calls(failures=[_first_line(error)])

    def _refusal(self, why: str) -> ModelError:
        return ModelError(
            f"the model's chat template cannot hold episodes of several turns: {why}.\n"
            "Use a model whose template has turns and tools, or one without a chat template."
        )


def _special_texts(tokenizer: Any) -> re.Pattern[str]:
    """Matches what would become a special token."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    texts = {token.content for token in added} | set(tokenizer.all_special_tokens)
    spelled = [text for text in texts if len("".join(text.split())) > 1]
    longest_first = sorted(spelled, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _with_space(match: re.Match[str]) -> str:
    token = match[0]
    place = len(token) - len(token.lstrip()) + 1
    return f"{token[:place]} {token[place:]}"


def _role(role: str) -> str:
    """The role of a message in a dialogue without tools."""
    return "user" if role == "tool" else role


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0][:200] or type(error).__name__
