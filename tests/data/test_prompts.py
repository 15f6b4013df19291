"""Chat templates, BOS, the length limit, and the order of prompts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlcli.data.prompts import EncodedPrompts, PromptStream, encode_prompts
from rlcli.data.readers import Row
from rlcli.errors import DataError
from rlcli.types import Prompt

SYSTEM_AND_USER = (
    {"role": "system", "content": "system"},
    {"role": "user", "content": "How many"},
)


def encode(rows: list[Row], tokenizer: Any, **changes: Any) -> EncodedPrompts:
    settings = {"max_prompt_tokens": 100, "filter_overlong": False, "truncation": "error"}
    return encode_prompts(rows, tokenizer, **settings | changes)


def row(prompt: Any = "How many apples", number: int = 1, **fields: Any) -> Row:
    return Row(id=f"a.jsonl:{number}", prompt=prompt, **fields)


def test_text_becomes_one_user_message_and_opens_the_assistant_turn(
    make_tokenizer: Any, chatml: str
) -> None:
    tokenizer = make_tokenizer(chatml)
    encoded = encode([row(ground_truth="12", data_source="x", extra_info={"k": 1})], tokenizer)
    (prompt,) = encoded.prompts
    assert tokenizer.decode(prompt.token_ids) == (
        "<|im_start|>user\nHow many apples<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompt.messages == ({"role": "user", "content": "How many apples"},)
    assert (prompt.id, prompt.ground_truth, prompt.data_source) == ("a.jsonl:1", "12", "x")
    assert prompt.extra_info == {"k": 1}
    assert encoded.notes == []


def test_messages_go_through_the_template_as_they_are(make_tokenizer: Any, chatml: str) -> None:
    tokenizer = make_tokenizer(chatml)
    (prompt,) = encode([row(SYSTEM_AND_USER)], tokenizer).prompts
    assert tokenizer.decode(prompt.token_ids).startswith("<|im_start|>system\nsystem<|im_end|>\n")


@pytest.mark.parametrize("template_writes_bos", [True, False])
@pytest.mark.parametrize("tokenizer_adds_bos", [True, False])
def test_there_is_one_bos_wherever_template_or_tokenizer_asks_for_it(
    make_tokenizer: Any, chatml: str, template_writes_bos: bool, tokenizer_adds_bos: bool
) -> None:
    template = "{{ bos_token }}" * template_writes_bos + chatml
    tokenizer = make_tokenizer(template, bos=True, adds_bos=tokenizer_adds_bos)
    (prompt,) = encode([row()], tokenizer).prompts
    expected = 1 if template_writes_bos or tokenizer_adds_bos else 0
    assert prompt.token_ids.count(tokenizer.bos_token_id) == expected
    assert (prompt.token_ids[0] == tokenizer.bos_token_id) == bool(expected)


def test_a_base_model_gets_raw_text_with_bos_without_eos_and_a_note(make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer(adds_bos=True, adds_eos=True)
    encoded = encode([row(SYSTEM_AND_USER)], tokenizer)
    assert tokenizer.decode(encoded.prompts[0].token_ids) == "<s>system\n\nHow many"
    assert encoded.notes == ["the tokenizer has no chat template: prompts go in as raw text"]


def test_a_template_that_refuses_a_row_is_reported_with_the_row(make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer("{{ raise_exception('System role not supported') }}")
    with pytest.raises(DataError, match=r"a\.jsonl:7: .*System role not supported"):
        encode([row(number=7)], tokenizer)


def test_a_prompt_over_the_limit_is_an_error_that_names_row_length_and_cures(
    make_tokenizer: Any,
) -> None:
    rows = [row("ab", 1), row("abcd" * 3, 2), row("abcd" * 4, 3)]
    tokenizer = make_tokenizer()
    lengths = [len(tokenizer(r.prompt)["input_ids"]) for r in rows]
    with pytest.raises(DataError) as caught:
        encode(rows, tokenizer, max_prompt_tokens=lengths[0])
    message = str(caught.value)
    assert f"prompt a.jsonl:2 has {lengths[1]} tokens" in message
    assert f"2 of 3 prompts are longer, the longest has {lengths[2]}" in message
    assert f"data.max_prompt_tokens={lengths[2]}" in message
    assert "data.filter_overlong=true" in message
    assert "data.truncation=left|right|middle" in message


def test_filtered_prompts_are_counted_and_said(make_tokenizer: Any) -> None:
    rows = [row("a", 1), row("how many pears" * 9, 2)]
    encoded = encode(rows, make_tokenizer(), max_prompt_tokens=5, filter_overlong=True)
    assert [prompt.id for prompt in encoded.prompts] == ["a.jsonl:1"]
    assert encoded.dropped == 1
    assert "1 of 2 prompts dropped: longer than data.max_prompt_tokens=5" in encoded.notes


def test_nothing_left_is_an_error(make_tokenizer: Any) -> None:
    with pytest.raises(DataError, match="no prompt is left"):
        encode([row("abcdefgh")], make_tokenizer(), max_prompt_tokens=1, filter_overlong=True)


@pytest.mark.parametrize(
    ("side", "kept"), [("left", "WXYZ"), ("right", "ABCD"), ("middle", "ABYZ")]
)
def test_truncation_keeps_the_named_side_and_the_bos(
    make_tokenizer: Any, side: str, kept: str
) -> None:
    text = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    plain = make_tokenizer()
    assert len(plain(text)["input_ids"]) == len(text)  # no merges: one token per letter
    encoded = encode([row(text)], plain, max_prompt_tokens=4, truncation=side)
    assert plain.decode(encoded.prompts[0].token_ids) == kept
    assert any(f"1 of 1 prompts cut ({side})" in note for note in encoded.notes)
    with_bos = make_tokenizer(adds_bos=True)
    (prompt,) = encode([row(text)], with_bos, max_prompt_tokens=5, truncation=side).prompts
    assert with_bos.decode(prompt.token_ids) == f"<s>{kept}"


def prompts(count: int) -> list[Prompt]:
    return [Prompt(id=f"a:{i}", messages=(), token_ids=(i,)) for i in range(count)]


def ids(batch: list[Prompt]) -> list[str]:
    return [prompt.id for prompt in batch]


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 3))
def test_every_epoch_has_every_prompt_once_and_no_batch_has_two_epochs(
    count: int, size: int, seed: int
) -> None:
    stream = PromptStream(prompts(count), seed=seed, shuffle=True)
    for epoch in range(2):
        batches = []
        while stream.epoch == epoch:
            batches.append(stream.next(size))
        assert sorted(name for batch in batches for name in ids(batch)) == sorted(
            ids(prompts(count))
        )
        assert all(len(batch) == size for batch in batches[:-1])


@given(st.integers(0, 12))
def test_a_loaded_state_goes_on_where_it_was_saved(position: int) -> None:
    stream = PromptStream(prompts(7), seed=3, shuffle=True)
    for _ in range(position):
        stream.next(2)
    other = PromptStream(prompts(7), seed=3, shuffle=True)
    other.load_state(stream.state())
    assert [ids(other.next(2)) for _ in range(9)] == [ids(stream.next(2)) for _ in range(9)]


def test_the_order_changes_with_epoch_and_seed_and_is_the_same_in_every_process() -> None:
    stream = PromptStream(prompts(6), seed=0, shuffle=True)
    epochs = [ids(stream.next(6)) for _ in range(2)]
    assert epochs[0] != epochs[1]
    assert ids(PromptStream(prompts(6), seed=1, shuffle=True).next(6)) != epochs[0]
    assert epochs[0] == ["a:0", "a:3", "a:4", "a:1", "a:5", "a:2"]


def test_without_shuffle_the_order_is_that_of_the_file() -> None:
    stream = PromptStream(prompts(3), seed=0, shuffle=False)
    assert ids(stream.next(2) + stream.next(2) + stream.next(2)) == [
        "a:0",
        "a:1",
        "a:2",
        "a:0",
        "a:1",
    ]


def test_a_state_of_other_data_is_refused() -> None:
    state = PromptStream(prompts(3), seed=0, shuffle=True).state()
    with pytest.raises(DataError, match="had 3 prompts, now there are 4"):
        PromptStream(prompts(4), seed=0, shuffle=True).load_state(state)
