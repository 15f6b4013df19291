"""What is trained on is what was sampled, token by token, in episodes of every kind."""

from __future__ import annotations

from collections import Counter

import pytest
from chat_templates import CODER, LLAMA, MISTRAL, QWEN, THINKING, schema, tokenizer_with
from random_episodes import END, check_episode

from rlcli.envs.dialogue import Dialogue

TEMPLATES = (QWEN, THINKING, CODER, LLAMA, MISTRAL, None)
SCHEMAS = [schema("look", k="integer"), schema("say", text="string")]


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.nightly)])
def test_no_token_is_lost_or_changed_and_the_mask_is_exact(count: int) -> None:
    talks = [
        (
            Dialogue(
                tokenizer_with(template),
                end_ids=(END,),
                schemas=SCHEMAS,
                tool_format="auto",
                template_kwargs={},
                max_reply_tokens=60,
                replies_are_tools=True,
            ),
            tokenizer_with(template),
        )
        for template in TEMPLATES
    ]
    turns = Counter(check_episode(*talks[i % len(talks)], SCHEMAS, i) for i in range(count))
    assert max(turns) >= 4
    assert turns[1] < count
