"""Small models and rows of packed tokens."""

from __future__ import annotations

import torch
import transformers

from rlcli.models.causal_lm import CausalLM
from rlcli.models.packed_attention import GroupLayout

SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}


PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14], [15]]


LONG = [20 + i % 70 for i in range(45)]


RESPONSES = [[20, 21, 22, 2], LONG, [25, 2], [26, 27, 28, 2], LONG[::-1][:40], [29], [30, 31, 32]]


GROUP = [0, 0, 0, 1, 1, 2, 2]


def build(kind: str, extra: dict[str, object]) -> transformers.PreTrainedModel:
    torch.manual_seed(1)
    config = getattr(transformers, f"{kind}Config")(**{**SMALL, **extra})
    return transformers.AutoModelForCausalLM.from_config(config).float()


def all_at_once(lm: CausalLM) -> torch.Tensor:
    layout = GroupLayout(
        [len(p) for p in PROMPTS], [len(r) for r in RESPONSES], GROUP, torch.device("cpu")
    )
    flat = torch.tensor([t for row in [*PROMPTS, *(r[:-1] for r in RESPONSES)] for t in row])
    hidden = lm.hidden(flat, layout.position_ids, layout)[layout.predicts_N]
    targets = torch.tensor([t for row in RESPONSES for t in row])
    return lm.logits(hidden).log_softmax(-1).gather(1, targets[:, None])[:, 0]
