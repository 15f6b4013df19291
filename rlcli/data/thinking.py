"""Prompts that end in an opened `<think>`: their responses begin behind it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rlcli.types import RESPONSE_PREFIX, Prompt

TAIL_TOKENS = 12
_OPENED = re.compile(r"<think>\s*\Z")


def mark_openings(prompts: Sequence[Prompt], tokenizer: Any) -> list[Prompt]:
    """The prompts, with the `<think>` that one ends in as `extra_info["response_prefix"]`.

    Without it a reward cannot know that a response is inside a thought from its first token on.
    """
    tails = {prompt.token_ids[-TAIL_TOKENS:] for prompt in prompts}
    opened = {
        tail: match[0]
        for tail in tails
        if (match := _OPENED.search(tokenizer.decode(list(tail), skip_special_tokens=False)))
    }
    if not opened:
        return list(prompts)
    return [
        replace(prompt, extra_info={**prompt.extra_info, RESPONSE_PREFIX: prefix})
        if (prefix := opened.get(prompt.token_ids[-TAIL_TOKENS:]))
        else prompt
        for prompt in prompts
    ]
