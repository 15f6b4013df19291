"""Thinking tags that a chat template opens, or that are special tokens of the tokenizer."""

from __future__ import annotations

from typing import Any

import pytest

from rlcli.config.rewards import RewardConfig
from rlcli.config.schema import Config
from rlcli.data.prompts import encode_prompts
from rlcli.data.readers import Row
from rlcli.errors import RewardError
from rlcli.rewards.rules import choice, gsm8k, math
from rlcli.rewards.rules import format as form
from rlcli.rollout.base import SamplingParams, finished_rollout
from rlcli.setup.resources import check_tags
from rlcli.types import RESPONSE_PREFIX, Prompt

TAGS = ["<think>", "</think>"]
R1 = "{{ messages[0]['content'] }}{% if add_generation_prompt %}<think>\n{% endif %}"
ROW = Row(id="a:1", prompt="1+1?", ground_truth="2", data_source="gsm8k")


@pytest.fixture
def tokenizer() -> Any:
    """tokenizer(special=..., template=...): bytes, an end token, and thinking tags."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def make(*, special: bool = False, template: str | None = None) -> Any:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        bytewise = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
        bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bytewise.decoder = decoders.ByteLevel()
        bytewise.add_special_tokens([AddedToken("<end>", special=True)])
        tags = [AddedToken(tag, normalized=False, special=special) for tag in TAGS]
        (bytewise.add_special_tokens if special else bytewise.add_tokens)(tags)
        made = PreTrainedTokenizerFast(tokenizer_object=bytewise, eos_token="<end>")
        made.chat_template = template
        return made

    return make


def encode(tokenizer: Any) -> Any:
    return encode_prompts(
        [ROW], tokenizer, max_prompt_tokens=99, filter_overlong=False, truncation="error"
    )


def test_rewards_see_special_tokens_only_if_asked_to(tokenizer: Any) -> None:
    reader = tokenizer(special=True)
    ids = reader("<think>a</think>2<end>", add_special_tokens=False)["input_ids"]
    prompt = Prompt(id="a:1", messages=(), token_ids=(1,))
    texts = [
        finished_rollout(
            reader,
            prompt,
            ids,
            [0.0] * len(ids),
            finish_reason="stop",
            policy_version=0,
            params=SamplingParams(n=1, max_tokens=9, keep_special_tokens=keeps),
        ).text
        for keeps in (False, True)
    ]
    assert texts == ["a2", "<think>a</think>2"]


@pytest.mark.parametrize(
    ("fn", "source", "special", "is_refused"),
    [
        ("format", "x", True, True),
        ("rules", "format", True, True),
        ("rules", "gsm8k", True, False),
        ("format", "x", False, False),
    ],
)
def test_a_rule_that_no_response_could_pass_is_refused_at_the_start(
    tokenizer: Any, fn: str, source: str, special: bool, is_refused: bool
) -> None:
    rows = [[Row(id="a:1", prompt="1+1?", ground_truth="2", data_source=source)]]
    config = Config(reward=RewardConfig(fn=fn))
    if is_refused:
        with pytest.raises(RewardError, match=r"<think>, </think>.*\n.*keep_special_tokens"):
            check_tags(config, tokenizer(special=special), rows)
    else:
        assert bool(check_tags(config, tokenizer(special=special), rows)) == special
    keeps = Config(reward=RewardConfig(fn=fn, keep_special_tokens=True))
    assert check_tags(keeps, tokenizer(special=special), rows) == []


def test_a_template_that_opens_a_thought_is_part_of_the_response(tokenizer: Any) -> None:
    opened, plain = (encode(tokenizer(template=one)) for one in (R1, R1.replace("<think>", "")))
    assert opened.prompts[0].extra_info == {RESPONSE_PREFIX: "<think>\n"}
    assert any("<think>" in note for note in opened.notes)
    assert plain.prompts[0].extra_info == {}
    info = opened.prompts[0].extra_info
    whole = "I add.\n</think>\n<answer>2</answer>"
    assert form.compute_score("format", whole, None, info) == 1.0
    assert form.compute_score("format", whole, None, {}) == 0.0
    assert form.compute_score("format", "<think>" + whole, None, info) == 0.0
    assert form.compute_score("format", "I add. 2", None, info) == 0.0


@pytest.mark.parametrize(
    ("rule", "text", "gold"),
    [(gsm8k, "#### 2", "2"), (math, r"\boxed{x}", "x"), (choice, "The answer is B.", "B")],
)
def test_a_thought_that_the_template_opened_and_nobody_closed_is_no_answer(
    rule: Any, text: str, gold: str
) -> None:
    info = {RESPONSE_PREFIX: "<think>\n"}
    assert rule.compute_score("", text, gold, info) == 0.0
    assert rule.compute_score("", f"hm</think>{text}", gold, info) == 1.0
    assert rule.compute_score("", text, gold, {}) == 1.0
