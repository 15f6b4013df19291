"""From a conversation to the tokens that a reward model was trained on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from rlcli.rewards.armo import GATING_MARK, find_last
from rlcli.rewards.chat_roles import with_known_roles
from rlcli.types import Message


class UnrateableError(Exception):
    """One rollout the model cannot score, with the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One conversation as tokens. `prompt_end`: where ArmoRM reads the prompt."""

    token_ids: list[int]
    type_ids: list[int] | None = None
    prompt_end: int = 0


class Encoder:
    """From messages and a response to tokens, in the form the reward model was trained on.

    Only the template writes special tokens: a text that spells one gets a space into it. A policy
    could end its turn otherwise, and praise itself in the next one.
    """

    def __init__(self, tokenizer: Any, *, limit: int, needs_mark: bool) -> None:
        self._tokenizer = tokenizer
        self._limit = limit
        self._mark: list[int] = self._ids(GATING_MARK) if needs_mark else []
        has_pairs = tokenizer.cls_token_id is not None and tokenizer.sep_token_id is not None
        self._reads_pairs = not tokenizer.chat_template and has_pairs
        self._special_ids = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        self._special = self._find_special()

    def encode(self, messages: Sequence[Message], response: str) -> Row:
        """The conversation as tokens; a prompt that is too long loses its beginning.

        Raises: UnrateableError when the response alone does not fit, or the template refuses it.
        """
        messages = with_known_roles(messages)
        if self._reads_pairs:
            return self._pair(self._plain(_joined(messages)), self._plain(response))
        if self._tokenizer.chat_template:
            answer = {"role": "assistant", "content": response}
            prompt = self._ids(self._render(messages, answers=False))
            whole = self._ids(self._render([*messages, answer], answers=True))
        else:
            prompt = self._tokenizer(self._plain(_joined(messages)))["input_ids"]
            whole = self._tokenizer(self._plain(_joined(messages) + response))["input_ids"]
        token_ids = self._cut(whole, prompt)
        prompt_end = find_last(self._mark, token_ids) if self._mark else 0
        if prompt_end is None:
            raise UnrateableError(
                "the reward model's chat template does not open the assistant's turn"
            )
        return Row(token_ids=token_ids, prompt_end=prompt_end)

    def _cut(self, whole: list[int], prompt: list[int]) -> list[int]:
        """The last tokens that fit, behind BOS."""
        if len(whole) <= self._limit:
            return whole
        pairs = enumerate(zip(whole, prompt, strict=False))
        shared = next((i for i, (a, b) in pairs if a != b), min(len(whole), len(prompt)))
        head = whole[:1] if whole[0] == self._tokenizer.bos_token_id else []
        room = self._limit - len(head)
        self._check_room(len(whole) - shared + len(self._mark), room)
        return head + whole[len(whole) - room :]

    def _pair(self, question: str, answer: str) -> Row:
        num_special: int = self._tokenizer.num_special_tokens_to_add(pair=True)
        room = self._limit - num_special
        self._check_room(len(self._ids(answer)) + 1, room)
        # a batch of one: alone, a pair with an empty half is taken for a single text
        found = self._tokenizer(
            [(question, answer)], truncation="only_first", max_length=self._limit, verbose=False
        )
        token_ids: list[int] = found["input_ids"][0]
        # a tokenizer may normalize full-width brackets to the ones that spell a special token
        if sum(token in self._special_ids for token in token_ids) > num_special:
            raise UnrateableError("the text spells a special token of the reward model")
        type_ids = found.get("token_type_ids")
        return Row(token_ids=token_ids, type_ids=type_ids[0] if type_ids else None)

    def _check_room(self, length: int, room: int) -> None:
        if length > room:
            raise UnrateableError(
                f"the response needs {length} tokens of the reward model, which has {room}; "
                "lower data.max_response_tokens"
            )

    def _render(self, messages: Sequence[Message], *, answers: bool) -> str:
        plain = [{**m, "content": self._plain(m["content"])} for m in messages]
        try:
            return self._tokenizer.apply_chat_template(
                plain, add_generation_prompt=not answers, tokenize=False
            )
        except TemplateError as error:
            raise UnrateableError(
                f"the reward model's chat template refuses this: {error}"
            ) from error

    def _ids(self, text: str) -> list[int]:
        """Tokens of a text that brings its own special tokens: the tokenizer adds no second BOS."""
        return self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _plain(self, text: str) -> str:
        """`text` without a special token's spelling: `<|eot_id|>` becomes `< |eot_id|>`."""
        while (broken := self._special.sub(_with_space, text)) != text:
            text = broken
        return text

    def _find_special(self) -> re.Pattern[str]:
        """Matches special tokens, and what marks a turn without being declared as special."""
        self._special = re.compile(r"(?!)")  # nothing, while the template is tried
        turn = ""
        if self._tokenizer.chat_template:
            try:
                turn = self._render([{"role": "user", "content": "x"}], answers=True)
            except UnrateableError:
                turn = ""  # a template that wants more than a user's turn
        added = self._tokenizer.added_tokens_decoder.values()
        found = {token.content for token in added if token.special or token.content in turn}
        found.update(self._tokenizer.all_special_tokens)
        # a single character cannot be broken, and spaces are no mark
        spelled = [token for token in found if len("".join(token.split())) > 1]
        longest_first = sorted(spelled, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _with_space(match: re.Match[str]) -> str:
    """The matched token with a space behind its first visible character."""
    token = match[0]
    place = len(token) - len(token.lstrip()) + 1
    return f"{token[:place]} {token[place:]}"


def _joined(messages: Sequence[Message]) -> str:
    return "\n\n".join(message["content"] for message in messages)
