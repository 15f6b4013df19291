"""Log-probs and entropies of response tokens, the LM head applied in chunks.

No [tokens, vocabulary] matrix outlives its chunk: the backward pass computes it again, unless
there is but one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rlcli.engines.micro_batches import PackedRows
from rlcli.models.causal_lm import CausalLM
from rlcli.models.packed_attention import round_up_tokens

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
    agree: Callable[[int], int] | None = None,
) -> TokenStats:
    """Statistics of every response token of `rows` under the distribution logits / temperature.

    agree: makes the largest number of chunks on any rank out of this rank's.
    """
    hidden = _packed(lm, rows) if lm.packed else _padded(lm, rows, pad_token_id)
    targets = F.pad(rows.targets_N, (0, len(hidden) - len(rows.targets_N)))
    vocabulary = lm.model.config.get_text_config().vocab_size
    size = max(1, CHUNK_ELEMENTS // vocabulary)
    num_chunks = max(1, -(-len(hidden) // size))
    if agree is not None:
        num_chunks = agree(num_chunks)
    chunks = zip(hidden.tensor_split(num_chunks), targets.tensor_split(num_chunks), strict=True)
    parts: list[tuple[Tensor, Tensor]] = []
    for h, some in chunks:
        arguments = (lm.logits, h, some, temperature, extra)
        if torch.is_grad_enabled() and num_chunks > 1:
            parts.append(checkpoint(_token_stats, *arguments, use_reentrant=False))
        else:
            parts.append(_token_stats(*arguments))
    n = len(rows.targets_N)
    logprobs, second = (torch.cat(column)[:n] for column in zip(*parts, strict=True))
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
    logits_nV = head(hidden_nD)
    if extra == "sum_pi_squared":
        logprobs_nV = (logits_nV / temperature).log_softmax(-1)
        logprobs_n = logprobs_nV.gather(1, targets_n[:, None])[:, 0]
        return logprobs_n, logprobs_nV.detach().exp().square().sum(-1)
    logprobs_n, entropy_n = _LogprobAndEntropy.apply(
        logits_nV, targets_n, temperature, extra is not None
    )
    return logprobs_n, entropy_n if extra == "entropy_grad" else entropy_n.detach()


class _LogprobAndEntropy(torch.autograd.Function):
    """Of softmax(logits / temperature), one row per token; of all [n, V] only one is kept.

    Gradients: onehot - p of the log-prob, -p (log p + H) of the entropy, over the temperature.
    """

    @staticmethod
    def forward(
        ctx: Any, logits_nV: Tensor, targets_n: Tensor, temperature: float, has_entropy: bool
    ) -> tuple[Tensor, Tensor]:
        logprobs_nV = (logits_nV / temperature if temperature != 1.0 else logits_nV).log_softmax(-1)
        logprobs_n = logprobs_nV.gather(1, targets_n[:, None])[:, 0]
        entropy_n = _entropy(logprobs_nV) if has_entropy else logprobs_n.new_empty(0)
        ctx.save_for_backward(logprobs_nV, targets_n, entropy_n)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return logprobs_n, entropy_n

    @staticmethod
    def backward(
        ctx: Any, grad_logprobs_n: Tensor | None, grad_entropy_n: Tensor | None
    ) -> tuple[Tensor | None, None, None, None]:
        logprobs_nV, targets_n, entropy_n = ctx.saved_tensors
        pull_nV = logprobs_nV.exp()
        weight_n1 = -grad_logprobs_n[:, None] if grad_logprobs_n is not None else 0.0
        if grad_entropy_n is not None:
            # 0 * -inf is NaN where a logit is -inf; such a token adds nothing to the entropy
            is_out_nV = logprobs_nV == float("-inf")
            surprise_nV = (logprobs_nV + entropy_n[:, None]).masked_fill_(is_out_nV, 0.0)
            pull_nV.mul_(weight_n1 - grad_entropy_n[:, None] * surprise_nV)
        else:
            pull_nV.mul_(weight_n1)
        if grad_logprobs_n is not None:
            pull_nV.scatter_add_(1, targets_n[:, None], grad_logprobs_n[:, None])
        return pull_nV.div_(ctx.temperature), None, None, None


def _entropy(logprobs_nV: Tensor) -> Tensor:
    """-sum p log p, in one [n, V] of its own."""
    terms_nV = logprobs_nV.exp().mul_(logprobs_nV)
    return -terms_nV.masked_fill_(logprobs_nV == float("-inf"), 0.0).sum(-1)


def _packed(lm: CausalLM, rows: PackedRows) -> Tensor:
    """The hidden states that predict each response token, and padding."""
    hidden_ND = lm.hidden(rows.token_ids_N, rows.layout.position_ids, rows.layout)
    predicts_N = rows.layout.predicts_N
    return hidden_ND[F.pad(predicts_N, (0, round_up_tokens(len(predicts_N)) - len(predicts_N)))]


def _padded(lm: CausalLM, rows: PackedRows, pad_token_id: int) -> Tensor:
    """The hidden states that predict each response token, from right-padded full sequences."""
    ids_bT, mask_bT, predicts_bT = padded_sequences(rows, pad_token_id)
    return lm.padded_hidden(ids_bT, mask_bT)[predicts_bT]


def padded_sequences(rows: PackedRows, pad_token_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """(token ids, attention mask, positions that predict a target), all [b, Tp + Tc]."""
    layout = rows.layout
    prompt_lengths = layout.prompts.lengths[layout.group_R].tolist()
    response_lengths = rows.response_lengths
    prompts = rows.token_ids_N[: layout.num_prompt_tokens].split(layout.prompts.lengths.tolist())
    responses = rows.responses_N.split(response_lengths)
    width = max(p + r for p, r in zip(prompt_lengths, response_lengths, strict=True))
    shape = (len(responses), width)
    ids = torch.full(shape, pad_token_id, dtype=torch.long, device=rows.token_ids_N.device)
    mask = torch.zeros_like(ids)
    predicts = torch.zeros(shape, dtype=torch.bool, device=ids.device)
    for row, (group, response) in enumerate(zip(layout.group_R.tolist(), responses, strict=True)):
        p, r = prompt_lengths[row], response_lengths[row]
        ids[row, :p], ids[row, p : p + r] = prompts[group], response
        mask[row, : p + r] = 1
        predicts[row, p - 1 : p + r - 1] = rows.mask_bT[row, :r]
    return ids, mask, predicts
