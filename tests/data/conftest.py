"""A small BPE tokenizer, with and without BOS and chat templates."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
TEXT = ["How many apples are there? There are 12 apples and 7 pears.", "system user assistant"]

MakeTokenizer = Callable[..., PreTrainedTokenizerFast]


@pytest.fixture
def chatml() -> str:
    """The chat template of ChatML, which writes no BOS."""
    return CHATML


@pytest.fixture(scope="session")
def make_tokenizer() -> MakeTokenizer:
    """make_tokenizer(chat_template=None, bos=False, adds_bos=False, adds_eos=False)."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(TEXT * 10, trainer)

    def make(
        chat_template: str | None = None,
        *,
        bos: bool = False,
        adds_bos: bool = False,
        adds_eos: bool = False,
    ) -> PreTrainedTokenizerFast:
        copy = Tokenizer.from_str(bpe.to_str())
        if adds_bos or adds_eos:
            before, after = ["<s>"] * adds_bos, ["</s>"] * adds_eos
            copy.post_processor = processors.TemplateProcessing(
                single=[*before, "$A", *after],
                special_tokens=[(t, copy.token_to_id(t)) for t in ("<s>", "</s>")],
            )
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=copy, eos_token="</s>", bos_token="<s>" if bos or adds_bos else None
        )
        tokenizer.chat_template = chat_template
        return tokenizer

    return make
