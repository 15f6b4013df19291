"""Tiny models with random weights and tokenizers, saved to disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CORPUS = ["12 + 7 = 19", "the answer is 42", "What is 3 times 4? It is 12.", "#### 18", "a b c"]


TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}


def save_tokenizer(folder: Path, corpus: list[str] | None = None) -> int:
    """A byte-level BPE tokenizer trained on a few lines; its number of tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(corpus or CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def save_tiny_model(folder: Path, kind: str, **changes: Any) -> Path:
    """A model directory with random weights: `kind` is Qwen2, Llama, Gemma2, ..."""
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    num_tokens = save_tokenizer(folder)
    config_class = getattr(transformers, f"{kind}Config")
    config = config_class(
        **{**TINY, **changes}, vocab_size=num_tokens, pad_token_id=0, bos_token_id=1, eos_token_id=2
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    return folder
