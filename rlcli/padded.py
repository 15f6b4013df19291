"""Decode with a model's own cache, for architectures that cannot run on flat tokens."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def decode_padded(model: Any, prompts: Sequence[Sequence[int]], *, pad_token_id: int) -> Any:
    """A generator of (logits of live rows, their row numbers); is sent (tokens, ended).

    Prompts are left-padded. Finished rows stay in the batch and are fed padding: caches of
    unknown kinds cannot be cut.
    """
    device = model.device
    width = max(len(p) for p in prompts)
    ids = torch.full((len(prompts), width), pad_token_id, device=device)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt, device=device)
        mask[row, width - len(prompt) :] = 1
    live = torch.arange(len(prompts), device=device)
    cache: Any = None
    accepted = inspect.signature(model.forward).parameters
    # transformers 5.24 renamed the argument and the output; code that comes with a checkpoint may
    # have either name whatever transformers is installed
    cache_name = "cache" if "cache" in accepted else "past_key_values"
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
    while True:
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        out = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            **last_only,
            **({cache_name: cache} if cache is not None else {}),
        )
        cache = out.cache if "cache" in out else out.past_key_values
        logits: Tensor = out.logits[:, -1].float()
        tokens, ended = yield logits[live], live
        ids = torch.full((len(prompts), 1), pad_token_id, device=device)
        ids[live, 0] = tokens
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        live = live[~ended]
