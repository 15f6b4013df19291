"""Renders rows to the model's input text: chat template, system prompt, prefill."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rlcli.data.readers import Row
from rlcli.errors import DataError
from rlcli.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OWN_ARGUMENTS = frozenset(
    {
        *("conversation", "add_generation_prompt", "continue_final_message", "tokenize"),
        *("padding", "truncation", "max_length", "return_tensors", "return_dict"),
        *("return_assistant_tokens_mask", "tokenizer_kwargs"),
    }
)
"""Arguments of apply_chat_template that rlcli sets itself."""
MARKER = re.compile(r"\[/?[A-Z_]{3,}\]|<[^<>\s]{2,40}>")
"""`[INST]`, `<|im_start|>`, `<start_of_turn>`, `<｜User｜>`."""
KNOWN_MARKERS = (
    *("<|im_start|>", "<|start_header_id|>", "<start_of_turn>", "[INST]", "<|user|>"),
    *("<｜User｜>", "<|turn>", "<|start|>", "<|start_of_role|>", "<|begin_of_text|>"),
)
"""First tokens of rendered prompts of common models."""
PROBE = "PROBE"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatFormat:
    """Options for rendering messages. template_kwargs: extra variables for the chat template."""

    system_prompt: str | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])


class Rendering:
    """Renders rows for one model and counts special cases for `notes`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chat: ChatFormat) -> None:
        """Raises: DataError if `template_kwargs` has a variable of `OWN_ARGUMENTS`."""
        own = sorted(OWN_ARGUMENTS & chat.template_kwargs.keys())
        if own:
            raise DataError(f"data.chat_template_kwargs.{own[0]} is set by rlcli. Remove it.")
        self.tokenizer, self.chat = tokenizer, chat
        self._bos = str(tokenizer.bos_token or "")
        self._markers = self._turn_markers() if tokenizer.chat_template else frozenset[str]()
        self._count: Counter[str] = Counter()

    def messages(self, row: Row) -> tuple[Message, ...]:
        """The row as messages, with the system prompt unless it has one already."""
        prompt = row.prompt
        messages = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt
        system = self.chat.system_prompt
        if system is None or messages[0]["role"] == "system" or self._rendered(row) is not None:
            return messages
        return ({"role": "system", "content": system}, *messages)

    def render(self, row: Row) -> str:
        """The model's input text. Raises: DataError if the template refuses the row."""
        rendered = self._rendered(row)
        if rendered is not None:
            self._count["rendered"] += 1
            return rendered
        self._count["plain"] += 1
        messages = self.messages(row)
        if self.chat.system_prompt is not None and messages[0]["content"] != (
            self.chat.system_prompt
        ):
            self._count["own_system"] += 1
        if not self.tokenizer.chat_template:
            return "\n\n".join(message["content"] for message in messages)
        if messages[-1]["content"].lstrip().startswith(KNOWN_MARKERS):
            self._count["foreign"] += 1
        return self._apply(row.id, messages)

    def notes(self) -> list[str]:
        """Remarks on the rows rendered so far."""
        count, notes = self._count, list[str]()
        if not self.tokenizer.chat_template:
            notes.append("the tokenizer has no chat template: prompts go in as raw text")
            if self.chat.template_kwargs.keys() - {"tools"}:
                notes.append("data.chat_template_kwargs is not used: there is no chat template")
        total = count["rendered"] + count["plain"]
        if count["rendered"]:
            notes.append(
                f"{count['rendered']} of {total} prompts are rendered by the chat template "
                "already and are used as they are"
            )
            if self.chat.system_prompt is not None:
                notes.append("data.system_prompt is not added to rendered prompts")
        if count["foreign"]:
            notes.append(
                f"{count['foreign']} of {total} prompts look rendered by another model's chat "
                "template; they are treated as plain text"
            )
        if count["own_system"]:
            notes.append(
                f"{count['own_system']} of {total} prompts keep their own system message instead "
                "of data.system_prompt"
            )
        return notes

    def _apply(self, row_id: str, messages: Sequence[Message]) -> str:
        from jinja2 import TemplateError

        try:
            if messages[-1]["role"] == "assistant":
                return self._continue(messages)
            return self._template(messages)
        except TemplateError as error:
            added = self.chat.system_prompt is not None and messages[0]["role"] == "system"
            if added:
                raise DataError(
                    f"{row_id}: the model's chat template refuses this prompt with "
                    f"data.system_prompt: {error}. Leave data.system_prompt out, or put it into "
                    "data.prompt_template."
                ) from error
            raise DataError(
                f"{row_id}: the model's chat template refuses this prompt: {error}. "
                "Change the roles of its messages, or take another model."
            ) from error

    def _continue(self, messages: Sequence[Message]) -> str:
        """Text that ends inside the last message, for the model to continue."""
        prefill = messages[-1]["content"]
        with suppress(ValueError):
            text = self._template(messages, continues=True)
            if text.endswith(prefill):
                return text
        # The template changes the last message: some remove its reasoning.
        return self._template(messages[:-1]) + prefill

    def _template(self, messages: Sequence[Message], *, continues: bool = False) -> str:
        text = self.tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            add_generation_prompt=not continues,
            continue_final_message=continues,
            tokenize=False,
            **self.chat.template_kwargs,
        )
        return str(text)

    def _turn_markers(self) -> frozenset[str]:
        """Markers that the chat template writes before a system or user message."""
        from jinja2 import TemplateError

        user, system = {"role": "user", "content": PROBE}, {"role": "system", "content": "PRE"}
        found: set[str] = set()
        for messages in ([user], [system, user]):
            try:
                before = self._template(messages).partition(PROBE)[0]
            except (TemplateError, ValueError):
                continue
            specials = map(str, self.tokenizer.added_tokens_decoder.values())
            found |= {token for token in specials if token.strip() and token in before}
            found |= set(MARKER.findall(before))
        ends = {self._bos, str(self.tokenizer.eos_token)} - set(KNOWN_MARKERS)
        return frozenset(found - ends)

    def _rendered(self, row: Row) -> str | None:
        """The row's text if it is already rendered with this model's template, else None."""
        prompt = row.prompt
        if not isinstance(prompt, str):
            if len(prompt) != 1:
                return None
            prompt = prompt[0]["content"]
        start = prompt.lstrip()
        has_bos = bool(self._bos) and start.startswith(self._bos)
        matches = str.__contains__ if has_bos else str.startswith
        return prompt if any(matches(start, marker) for marker in self._markers) else None
