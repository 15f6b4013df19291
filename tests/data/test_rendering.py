"""Rows to the text that the model continues."""

from __future__ import annotations

from typing import Any

import pytest

from rlcli.data.prompts import encode_prompts
from rlcli.data.readers import Row
from rlcli.data.rendering import ChatFormat
from rlcli.errors import DataError

USER = {"role": "user", "content": "How many"}
OPEN = "<|im_start|>user\nHow many<|im_end|>\n<|im_start|>assistant\n"
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('no system') }}{% endif %}<start_of_turn>{{ m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }}"
    "[/INST]{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
)
DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}"
    "{% elif m['role'] == 'user' %}<|User|>{{ m['content'] }}{% else %}<|Assistant|>"
    "{{ m['content'].split('</think>')[-1] }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|>{% endif %}"
)
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)


def texts(tokenizer: Any, *prompts: Any, **chat: Any) -> tuple[list[str], list[str]]:
    """(rendered prompts, notes)."""
    rows = [Row(id=f"a.jsonl:{n}", prompt=prompt) for n, prompt in enumerate(prompts, start=1)]
    encoded = encode_prompts(
        rows,
        tokenizer,
        max_prompt_tokens=1000,
        filter_overlong=False,
        truncation="error",
        chat=ChatFormat(**chat),
    )
    decoded = [tokenizer.decode(prompt.token_ids) for prompt in encoded.prompts]
    return decoded, encoded.notes


def test_a_last_assistant_message_is_continued(make_tokenizer: Any, chatml: str) -> None:
    prefill = {"role": "assistant", "content": "There are <think>"}
    (text,), _ = texts(make_tokenizer(chatml), (USER, prefill))
    assert text == f"{OPEN}There are <think>"


def test_a_prefill_survives_a_template_that_cuts_reasoning_out(make_tokenizer: Any) -> None:
    prefill = {"role": "assistant", "content": "<think>one</think>So"}
    (text,), _ = texts(make_tokenizer(DEEPSEEK, bos=True), (USER, prefill))
    assert text == "<s><|User|>How many<|Assistant|><think>one</think>So"


def test_a_prefill_ends_the_raw_text_of_a_base_model(make_tokenizer: Any) -> None:
    (text,), _ = texts(make_tokenizer(), (USER, {"role": "assistant", "content": "There"}))
    assert text == "How many\n\nThere"


@pytest.mark.parametrize(
    ("template", "rendered"),
    [
        (None, OPEN),
        (None, f"<|im_start|>system\nsystem<|im_end|>\n{OPEN}Let me"),
        (GEMMA, "<start_of_turn>user\nHow many<end_of_turn>\n<start_of_turn>model\n"),
        (GEMMA, "<s><start_of_turn>user\nHow many<end_of_turn>\n<start_of_turn>model\n"),
        (MISTRAL, "[INST] How many[/INST]"),
        (DEEPSEEK, "<s>system<|User|>How many<|Assistant|>"),
    ],
)
def test_rendered_text_is_not_rendered_again(
    make_tokenizer: Any, chatml: str, template: str | None, rendered: str
) -> None:
    tokenizer = make_tokenizer(template or chatml, bos=template is not None)
    as_message = ({"role": "user", "content": rendered},)
    found, notes = texts(tokenizer, rendered, as_message, "How many", system_prompt=None)
    bare = rendered.removeprefix("<s>")
    assert [text.removeprefix("<s>") for text in found[:2]] == [bare, bare]
    assert all(text.count("<s>") <= 1 for text in found)
    assert found[2] != "How many"
    assert notes[0].startswith("2 of 3 prompts are rendered")


@pytest.mark.parametrize(
    "text", ["How many <|im_start|> tokens?", "<b>bold</b> in HTML", "[1, 2] sum", "<think> is?"]
)
def test_a_question_about_markers_is_a_question(
    make_tokenizer: Any, chatml: str, text: str
) -> None:
    (found,), notes = texts(make_tokenizer(chatml), text)
    assert found == f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    assert notes == []


def test_text_rendered_for_another_model_is_reported(make_tokenizer: Any, chatml: str) -> None:
    _, notes = texts(make_tokenizer(chatml), "[INST] How many[/INST]", "How many")
    assert len(notes) == 1
    assert notes[0].startswith("1 of 2 prompts look rendered by another")


def test_a_system_prompt_is_added_where_there_is_none(make_tokenizer: Any, chatml: str) -> None:
    own = {"role": "system", "content": "user"}
    found, notes = texts(
        make_tokenizer(chatml), "How many", (own, USER), OPEN, system_prompt="system"
    )
    assert found == [
        f"<|im_start|>system\nsystem<|im_end|>\n{OPEN}",
        f"<|im_start|>system\nuser<|im_end|>\n{OPEN}",
        OPEN,
    ]
    assert any("1 of 3 prompts keep their own system message" in note for note in notes)
    assert "data.system_prompt is not added to rendered prompts" in notes


def test_a_template_that_refuses_the_system_prompt_names_the_setting(make_tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"Leave data.system_prompt out"):
        texts(make_tokenizer(GEMMA, bos=True), "How many", system_prompt="system")


def test_template_variables_reach_the_template(make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer(THINKING)
    off = {"enable_thinking": False, "unknown_to_it": 1}
    (text,), _ = texts(tokenizer, "How many", template_kwargs=off)
    assert text == f"{OPEN}<think>\n\n</think>\n\n"
    (text,), _ = texts(tokenizer, "How many")
    assert text == OPEN


def test_arguments_of_our_own_are_refused_as_template_variables(
    make_tokenizer: Any, chatml: str
) -> None:
    with pytest.raises(DataError, match=r"data.chat_template_kwargs.tokenize is set by rlcli"):
        texts(make_tokenizer(chatml), "How many", template_kwargs={"tokenize": True})
