"""A native sampler of a tiny model, prompts for it, and the trainer's log-probs of what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rlcli.engines.logprobs import response_stats
from rlcli.engines.micro_batches import index_rows, pack_rows
from rlcli.models.causal_lm import CausalLM, load_causal_lm, load_tokenizer
from rlcli.rollout.collate import ScoredRollouts, collate
from rlcli.rollout.native import NativeSampler
from rlcli.types import Prompt, Reward, Rollout

CPU = torch.device("cpu")


def load(path: Path, *, packed: bool = True) -> tuple[CausalLM, Any]:
    lm = load_causal_lm(str(path), dtype=torch.float32, device=CPU)
    if not packed:
        lm.packed = False
        lm.model.set_attn_implementation("sdpa")
    return lm, load_tokenizer(str(path))


def sampler(lm: CausalLM, tokenizer: Any, **changes: Any) -> NativeSampler:
    settings = {
        "eos_token_ids": (2, 7, 9, 11),
        "pad_token_id": 0,
        "max_num_seqs": 64,
        "shares_weights": True,
    }
    return NativeSampler(lm, tokenizer, **{**settings, **changes})


def prompts(count: int) -> list[Prompt]:
    draw = torch.Generator().manual_seed(0)
    out = []
    for i in range(count):
        length = int(torch.randint(1, 12, (), generator=draw))
        ids = tuple(torch.randint(3, 250, (length,), generator=draw).tolist())
        out.append(Prompt(id=str(i), messages=(), token_ids=ids))
    return out


def trainer_logprobs(lm: CausalLM, rollouts: list[Rollout], temperature: float) -> torch.Tensor:
    rewards = [Reward(value=0.0) for _ in rollouts]
    batch = collate(
        ScoredRollouts(rollouts=rollouts, rewards=rewards, greedy={}), needs=frozenset()
    )
    rows = pack_rows(batch, range(len(batch.lengths_B)), index_rows(batch), CPU)
    with torch.no_grad():
        stats = response_stats(lm, rows, temperature=temperature, pad_token_id=0)
    return stats.logprobs_N
