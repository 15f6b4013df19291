"""Texts that end a response (rollout.stop), found in tokens alike for every sampler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MARGIN = 4
"""Tokens before a stop text that are decoded too: some decode to fewer characters at a start."""


class StopTexts:
    """Finds stop texts in responses. Falsy where there are none."""

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        # a token has at least one byte, save for those that are no text
        self.window = max((len(text.encode()) for text in stop), default=0) + MARGIN

    def __bool__(self) -> bool:
        return bool(self.stop)

    def ends(self, token_ids: Sequence[int]) -> bool:
        """Whether the last token completes a stop text."""
        return self._holds(token_ids) and not self._holds(token_ids[:-1])

    def ended(self, rows: Sequence[Sequence[int]]) -> list[bool]:
        """`ends` of responses in which no stop text was complete before their last token."""
        return [self._holds(token_ids) for token_ids in rows]

    def num_kept(self, token_ids: Sequence[int]) -> int | None:
        """Tokens up to the first complete stop text; None where there is none."""
        full = self.tokenizer.decode(token_ids, skip_special_tokens=False)
        if not any(text in full for text in self.stop):
            return None
        counts = range(1, len(token_ids) + 1)
        return next((count for count in counts if self._holds(token_ids[:count])), None)

    def text_before(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Text of a response that `ends`, up to its stop text."""
        text = self.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
        found = [place for each in self.stop if (place := text.find(each)) >= 0]
        if found:
            return str(text[: min(found)])
        # the stop text is that of a special token
        return str(self.tokenizer.decode(token_ids[:-1], skip_special_tokens=skip_special_tokens))

    def _holds(self, token_ids: Sequence[int]) -> bool:
        tail = list(token_ids[-self.window :])
        text = self.tokenizer.decode(tail, skip_special_tokens=False)
        return any(each in text for each in self.stop)
