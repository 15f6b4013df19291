"""Decoding with a model's own cache, for architectures that cannot run on flat tokens."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlcli.causal_lm import CausalLM


def decode_padded(lm: CausalLM, prompts: Sequence[Sequence[int]], *, pad_token_id: int) -> Any:
    """A generator of (logits of live rows, their row numbers); is sent (tokens, ended).

    Prompts are left-padded. Finished rows stay in the batch and are fed padding: caches of
    unknown kinds cannot be cut.
    """
    device = lm.device
    width = max(len(p) for p in prompts)
    ids = torch.full((len(prompts), width), pad_token_id, device=device)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt, device=device)
        mask[row, width - len(prompt) :] = 1
    live = torch.arange(len(prompts), device=device)
    cache: Any = None
    model: Any = lm.model
    keep_last = "logits_to_keep" in inspect.signature(model.forward).parameters
    while True:
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        arguments: dict[str, Any] = {"logits_to_keep": 1} if keep_last else {}
        if cache is not None:
            arguments["past_key_values"] = cache
        out = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            **arguments,
        )
        cache = out.past_key_values
        logits: Tensor = out.logits[:, -1].float()
        tokens, ended = yield logits[live], live
        ids = torch.full((len(prompts), 1), pad_token_id, device=device)
        ids[live, 0] = tokens
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        live = live[~ended]
