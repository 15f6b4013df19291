"""Marks prompts that end with `<think>`: their responses begin inside a thought."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rlcli.types import RESPONSE_PREFIX, Prompt

TAIL_TOKENS = 12
_OPENED = re.compile(r"<think>\s*\Z")


def mark_openings(prompts: Sequence[Prompt], tokenizer: Any) -> list[Prompt]:
    """The prompts; a final `<think>` is copied to `extra_info["response_prefix"]`.

    Rewards need it to see that the response begins inside a thought.
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
