"""Log-probs and entropies of response tokens, the LM head applied in chunks.

No [tokens, vocabulary] matrix outlives its chunk: the backward pass computes it again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rlcli.causal_lm import CausalLM
from rlcli.engines.packing import PackedRows

CHUNK_ELEMENTS = 2**26
"""Logits held at once: 256 MiB in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStats:
    """Per response token, in row order: logprobs_N, and what else was asked for."""

    logprobs_N: Tensor
    entropy_N: Tensor | None = None
    sum_pi_squared_N: Tensor | None = None


Extra = Literal["entropy", "entropy_grad", "sum_pi_squared"]
"""What response_stats gives besides log-probs; entropy_grad: with gradients through it."""


def response_stats(
    lm: CausalLM,
    rows: PackedRows,
    *,
    temperature: float,
    pad_token_id: int,
    extra: Extra | None = None,
) -> TokenStats:
    """Statistics of every response token of `rows` under the distribution logits / temperature."""
    hidden = _packed(lm, rows) if lm.packed else _padded(lm, rows, pad_token_id)
    vocabulary = lm.model.config.get_text_config().vocab_size
    size = max(1, CHUNK_ELEMENTS // vocabulary)
    parts: list[tuple[Tensor, Tensor]] = []
    for h, targets in zip(hidden.split(size), rows.targets_N.split(size), strict=True):
        arguments = (lm.logits, h, targets, temperature, extra)
        if torch.is_grad_enabled() and len(hidden) > size:
            parts.append(checkpoint(_token_stats, *arguments, use_reentrant=False))
        else:
            parts.append(_token_stats(*arguments))
    logprobs, second = (torch.cat(column) for column in zip(*parts, strict=True))
    is_entropy = extra in ("entropy", "entropy_grad")
    return TokenStats(
        logprobs_N=logprobs,
        entropy_N=second if is_entropy else None,
        sum_pi_squared_N=second if extra == "sum_pi_squared" else None,
    )


def _token_stats(
    head: Callable[[Tensor], Tensor],
    hidden_nD: Tensor,
    targets_n: Tensor,
    temperature: float,
    extra: Extra | None,
) -> tuple[Tensor, Tensor]:
    """(log-probs, the extra statistic or an empty tensor), each [n]."""
    logits_nV = head(hidden_nD) / temperature
    all_logprobs_nV = logits_nV.log_softmax(-1)
    logprobs = all_logprobs_nV.gather(1, targets_n[:, None])[:, 0]
    if extra is None:
        return logprobs, logprobs.new_empty(0)
    with torch.set_grad_enabled(extra == "entropy_grad" and torch.is_grad_enabled()):
        p_nV = all_logprobs_nV.exp()
        if extra == "sum_pi_squared":
            return logprobs, p_nV.square().sum(-1)
        # 0 * -inf is NaN where a logit is -inf; such a token adds nothing to the entropy
        smallest = torch.finfo(p_nV.dtype).min
        return logprobs, -(p_nV * all_logprobs_nV.clamp(min=smallest)).sum(-1)


def _packed(lm: CausalLM, rows: PackedRows) -> Tensor:
    hidden_ND = lm.hidden(rows.token_ids_N, rows.layout.position_ids, rows.layout)
    return hidden_ND[rows.layout.predicts_N]


def _padded(lm: CausalLM, rows: PackedRows, pad_token_id: int) -> Tensor:
    """The hidden states that predict each response token, from right-padded full sequences."""
    ids_bT, mask_bT, predicts_bT = padded_sequences(rows, pad_token_id)
    return lm.padded_hidden(ids_bT, mask_bT)[predicts_bT]


def padded_sequences(rows: PackedRows, pad_token_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """(token ids, attention mask, positions that predict a response token), all [b, Tp + Tc]."""
    layout = rows.layout
    prompt_lengths = layout.prompts.lengths[layout.group_R].tolist()
    response_lengths = layout.responses.lengths.tolist()
    prompts = rows.token_ids_N[: layout.num_prompt_tokens].split(layout.prompts.lengths.tolist())
    responses = rows.targets_N.split(response_lengths)
    width = max(p + r for p, r in zip(prompt_lengths, response_lengths, strict=True))
    shape = (len(responses), width)
    ids = torch.full(shape, pad_token_id, dtype=torch.long, device=rows.token_ids_N.device)
    mask = torch.zeros_like(ids)
    predicts = torch.zeros(shape, dtype=torch.bool, device=ids.device)
    for row, (group, response) in enumerate(zip(layout.group_R.tolist(), responses, strict=True)):
        p, r = prompt_lengths[row], response_lengths[row]
        ids[row, :p], ids[row, p : p + r] = prompts[group], response
        mask[row, : p + r] = 1
        predicts[row, p - 1 : p + r - 1] = True
    return ids, mask, predicts
