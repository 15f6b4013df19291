"""Rows to token ids: one BOS, the length limit, and the order of a run."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rlcli.data.files import printable
from rlcli.data.readers import Row
from rlcli.data.rendering import ChatFormat, Rendering
from rlcli.data.thinking import mark_openings
from rlcli.errors import DataError
from rlcli.types import RESPONSE_PREFIX, Message, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Truncation = Literal["error", "left", "right", "middle"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPrompts:
    """Prompts ready to sample from, how many were dropped, and lines to tell the user."""

    prompts: list[Prompt]
    dropped: int
    notes: list[str]


def encode_prompts(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prompt_tokens: int,
    filter_overlong: bool,
    truncation: Truncation,
    chat: ChatFormat | None = None,
) -> EncodedPrompts:
    """Every row as token ids of at most `max_prompt_tokens`, opening the assistant's turn.

    Raises:
        DataError: a prompt over the limit under truncation "error", a chat template that
            refuses a row, or no prompt left.
    """
    rendering = Rendering(tokenizer, chat or ChatFormat())
    token_ids = _encode([rendering.render(row) for row in rows], tokenizer)
    notes = rendering.notes()
    overlong = [i for i, ids in enumerate(token_ids) if len(ids) > max_prompt_tokens]
    if overlong and not filter_overlong and truncation == "error":
        raise DataError(_overlong_message(rows, token_ids, overlong, limit=max_prompt_tokens))
    bos = _bos(tokenizer)
    dropped = set(overlong) if filter_overlong else set[int]()
    if overlong:
        deed = "dropped" if filter_overlong else f"cut ({truncation})"
        notes.append(
            f"{len(overlong)} of {len(rows)} prompts {deed}: longer than "
            f"data.max_prompt_tokens={max_prompt_tokens}"
        )
    prompts = [
        _prompt(
            row,
            rendering.messages(row),
            _cut(ids, max_prompt_tokens, side=truncation, bos=bos),
        )
        for i, (row, ids) in enumerate(zip(rows, token_ids, strict=True))
        if i not in dropped
    ]
    if not prompts:
        raise DataError(
            f"no prompt is left: all {len(rows)} are longer than data.max_prompt_tokens="
            f"{max_prompt_tokens}. Raise it."
        )
    prompts = mark_openings(prompts, tokenizer)
    notes += _opening_notes(prompts)
    return EncodedPrompts(prompts=prompts, dropped=len(dropped), notes=notes)


def _opening_notes(prompts: Sequence[Prompt]) -> list[str]:
    if not any(RESPONSE_PREFIX in prompt.extra_info for prompt in prompts):
        return []
    return [
        "prompts end in <think>, so responses lack that tag. Built-in rules add it; "
        f"a reward function finds it in extra_info[{RESPONSE_PREFIX!r}]"
    ]


def prompt_tokens(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, chat: ChatFormat | None = None
) -> tuple[list[tuple[int, ...]], list[str]]:
    """(token ids of every prompt without a length limit, remarks on how they were rendered).

    Raises:
        DataError: the chat template refuses a row.
    """
    rendering = Rendering(tokenizer, chat or ChatFormat())
    return _encode([rendering.render(row) for row in rows], tokenizer), rendering.notes()


def token_counts(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, chat: ChatFormat | None = None
) -> tuple[list[int], list[str], list[str]]:
    """(token count of every accepted row, a message for every refused row, remarks)."""
    rendering = Rendering(tokenizer, chat or ChatFormat())
    texts: list[str] = []
    refused: list[str] = []
    for row in rows:
        try:
            texts.append(rendering.render(row))
        except DataError as error:
            refused.append(printable(str(error)))
    counts = [len(ids) for ids in _encode(texts, tokenizer)] if texts else []
    return counts, refused, rendering.notes()


def _encode(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, ...]]:
    """Token ids with exactly one BOS where the model uses one, and no EOS of the tokenizer's.

    A chat template may contain BOS or lack it. So the tokenizer's own BOS is off, and one is added
    if it is missing.
    """
    bos = _bos(tokenizer)
    probe: list[int] = tokenizer("a")["input_ids"]
    adds_bos = bos is not None and probe[:1] == [bos]
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return [_with_one_bos(tuple(ids), bos, needs_bos=adds_bos) for ids in encoded]


def _bos(tokenizer: PreTrainedTokenizerBase) -> int | None:
    bos = tokenizer.bos_token_id
    return bos if isinstance(bos, int) else None


def _with_one_bos(ids: tuple[int, ...], bos: int | None, *, needs_bos: bool) -> tuple[int, ...]:
    start = 0
    while bos is not None and start < len(ids) and ids[start] == bos:
        start += 1
    if bos is not None and (start or needs_bos):
        return (bos, *ids[start:])
    return ids


def _cut(ids: tuple[int, ...], limit: int, *, side: Truncation, bos: int | None) -> tuple[int, ...]:
    if len(ids) <= limit:
        return ids
    head = ids[:1] if ids[0] == bos and limit > 1 else ()
    body, room = ids[len(head) :], limit - len(head)
    if side == "left":
        return head + body[len(body) - room :]
    if side == "right":
        return head + body[:room]
    first = room // 2
    return head + body[:first] + body[len(body) - (room - first) :]


def _prompt(row: Row, messages: tuple[Message, ...], token_ids: tuple[int, ...]) -> Prompt:
    if not token_ids:
        raise DataError(f"{row.id}: the prompt has no tokens. Fill it in, or remove the row.")
    return Prompt(
        id=row.id,
        messages=messages,
        token_ids=token_ids,
        ground_truth=row.ground_truth,
        data_source=row.data_source,
        extra_info=row.extra_info,
        columns={**row.columns, "prompt": row.prompt},
    )


def _overlong_message(
    rows: Sequence[Row],
    token_ids: Sequence[tuple[int, ...]],
    overlong: Sequence[int],
    *,
    limit: int,
) -> str:
    first = overlong[0]
    longest = max(len(token_ids[i]) for i in overlong)
    return (
        f"prompt {rows[first].id} has {len(token_ids[first])} tokens, more than "
        f"data.max_prompt_tokens={limit} ({len(overlong)} of {len(rows)} prompts are longer, "
        f"the longest has {longest}).\n"
        f"Set data.max_prompt_tokens={longest}, or data.filter_overlong=true to drop them, "
        "or data.truncation=left|right|middle to cut them."
    )


class PromptStream:
    """Prompts in the order of training, epoch after epoch, from any point again.

    The order of an epoch depends on `seed` and the epoch's number alone.
    """

    def __init__(self, prompts: Sequence[Prompt], *, seed: int, shuffle: bool) -> None:
        if not prompts:
            raise DataError("there are no prompts to train on.")
        self._prompts = prompts
        self._seed = seed
        self._shuffle = shuffle
        self._epoch = 0
        self._index = 0
        self._order = self._epoch_order()

    def next(self, count: int) -> list[Prompt]:
        """The next `count` prompts; fewer at the end of an epoch, so that no batch has two."""
        chosen = self._order[self._index : self._index + count]
        self._index += len(chosen)
        if self._index == len(self._prompts):
            self._epoch, self._index = self._epoch + 1, 0
            self._order = self._epoch_order()
        return [self._prompts[i] for i in chosen]

    @property
    def epoch(self) -> int:
        """Passes over the data that are complete."""
        return self._epoch

    def state(self) -> dict[str, int]:
        """Where the stream stands; `load_state` goes on from there."""
        return {"epoch": self._epoch, "index": self._index, "prompts": len(self._prompts)}

    def load_state(self, state: Mapping[str, int]) -> None:
        """Go on from `state`.

        Raises:
            DataError: the data has another number of prompts than when the state was saved.
        """
        if state["prompts"] != len(self._prompts):
            raise DataError(
                f"the run to resume had {state['prompts']} prompts, now there are "
                f"{len(self._prompts)}. Give it the same data and data settings."
            )
        self._epoch, self._index = state["epoch"], state["index"]
        self._order = self._epoch_order()

    def _epoch_order(self) -> list[int]:
        indices = list(range(len(self._prompts)))
        if not self._shuffle:
            return indices
        # Only random() is promised to give the same numbers in every Python; shuffle() is not.
        rng = random.Random(f"{self._seed}/{self._epoch}")
        keys = [rng.random() for _ in indices]
        return sorted(indices, key=keys.__getitem__)
