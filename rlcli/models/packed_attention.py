"""Packed attention: many rollouts in one row without padding, each group's prompt computed once.

The linear layers process N flat tokens. A registered attention function regroups queries, keys
and values by a layout: a prompt attends to itself, a response to its prompt and to itself. It
works for every transformers model that honours AttentionInterface, in training (GroupLayout) and
sampling (DecodeLayout). The layout is a keyword argument of the forward call, not module state,
which would be gone when gradient checkpointing recomputes the forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

ATTENTION = "rlcli_packed"
SHORTEST_BUCKET = 32
FEWEST_PADDED = 64
KNOWN_KEYWORDS = {"position_ids", "use_cache", "cache_position", "output_attentions", "is_causal"}


class PackingUnsupportedError(Exception):
    """The architecture's attention has a feature that packing does not support."""


def round_up_tokens(n: int) -> int:
    """Round n up a little, so that kernels built for a number of tokens are reused."""
    step = 1 if n <= FEWEST_PADDED else max(32, 1 << (n.bit_length() - 6))
    return -(-n // step) * step


class Layout(Protocol):
    """Positions of flat tokens in prompts and responses."""

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float | None,
        window: int | None,
    ) -> Tensor:
        """Attention output [N, H, value] of q [N, H, head], k [N, KV, head], v [N, KV, value]."""
        ...


def attend_by_layout(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    layout: Layout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **other: Any,
) -> tuple[Tensor, None]:
    if layout is None:
        raise PackingUnsupportedError("the model does not pass keywords on to its attention")
    if attention_mask is not None:
        raise PackingUnsupportedError("its attention uses a mask or bias of its own")
    unknown = {k for k, v in other.items() if v is not None and v is not False} - KNOWN_KEYWORDS
    if unknown or dropout:
        feature = ", ".join(sorted(unknown)) or "attention dropout"
        raise PackingUnsupportedError(f"its attention uses {feature}")
    q, k, v = (heads[0].transpose(0, 1) for heads in (query, key, value))
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    out = layout.attend(layer, q, k, v, scale=scaling, window=sliding_window)
    return out[None], None


AttentionInterface.register(ATTENTION, attend_by_layout)
AttentionMaskInterface.register(ATTENTION, lambda *args, **kwargs: None)  # layouts mask themselves


def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float | None) -> Tensor:
    gqa = q.shape[1] != k.shape[1]
    if gqa and q.is_cuda:
        # grouped heads with a mask would select the kernel that stores all scores
        repeat = q.shape[1] // k.shape[1]
        k, v, gqa = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1), False
    if q.device.type == "cpu" and v.dtype is torch.bfloat16:
        # its backward pass takes twice as long as float32
        with torch.autocast("cpu", enabled=False):
            return masked_attention(q.float(), k.float(), v.float(), mask, scale).bfloat16()
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=gqa)


class PaddedBlock:
    """Index map between flat tokens and a padded block of rows, padded on one side."""

    def __init__(self, lengths: Sequence[int], device: torch.device, *, left: bool) -> None:
        self.rows, self.width = len(lengths), max(lengths, default=0)
        self.lengths = torch.tensor(lengths, dtype=torch.long, device=device)
        column = torch.arange(self.width, device=device)[None]
        if left:
            self.mask = column >= self.width - self.lengths[:, None]
        else:
            self.mask = column < self.lengths[:, None]
        self.row, self.column = self.mask.nonzero(as_tuple=True)

    def pad(self, flat: Tensor) -> Tensor:
        """[n, heads, head] -> [rows, heads, width, head], with zeros as padding."""
        block = flat.new_zeros(self.rows, self.width, *flat.shape[1:])
        block[self.row, self.column] = flat
        return block.transpose(1, 2)

    def flatten(self, block: Tensor) -> Tensor:
        """[rows, heads, width, head] -> [n, heads, head]."""
        return block.transpose(1, 2)[self.row, self.column]


class _Bucket:
    """Responses of similar length, padded only to the longest in the bucket."""

    def __init__(
        self, rows: Tensor, responses: PaddedBlock, prompts: PaddedBlock, group_R: Tensor
    ) -> None:
        self.block = PaddedBlock(responses.lengths[rows].tolist(), rows.device, left=False)
        starts = responses.lengths.cumsum(0) - responses.lengths
        self.flat = starts[rows][self.block.row] + self.block.column
        self.group = group_R[rows]
        self.prompt_width = int(prompts.lengths[self.group].max())
        self.prompt_mask = prompts.mask[self.group][:, prompts.width - self.prompt_width :]

    def mask(self, window: int | None) -> Tensor:
        """Boolean [rows, 1, width, prompt_width + width]; True: may attend."""
        at = torch.arange(self.block.width, device=self.flat.device)
        at_prompt = torch.arange(self.prompt_width, device=self.flat.device)
        to_prompt = self.prompt_mask[:, None, :].expand(-1, self.block.width, -1)
        to_self = at[:, None] >= at
        if window is not None:
            to_prompt = to_prompt & (self.prompt_width + at[:, None] - at_prompt < window)
            to_self = to_self & (at[:, None] - at < window)
        to_self = to_self[None].expand(self.block.rows, -1, -1)
        return torch.cat([to_prompt, to_self], dim=-1)[:, None]


class GroupLayout:
    """All prompts, then all responses, each linked to its prompt.

    A response's last token predicts nothing, so it is not among the flat tokens. They end with
    padding that attends to nothing. predicts_N: flat index of the hidden state that predicts each
    response token, or each of `predict_only`, in order.
    """

    def __init__(
        self,
        prompt_lengths: Sequence[int],
        response_lengths: Sequence[int],
        group: Sequence[int],
        device: torch.device,
    ) -> None:
        read_lengths = [max(0, length - 1) for length in response_lengths]
        self.prompts = PaddedBlock(prompt_lengths, device, left=True)
        self.responses = PaddedBlock(read_lengths, device, left=False)
        self.group_R = torch.tensor(group, dtype=torch.long, device=device)
        self.num_prompt_tokens = len(self.prompts.row)
        p, r = self.prompts, self.responses
        prompt_positions = p.column - (p.width - p.lengths[p.row])
        response_positions = p.lengths[self.group_R][r.row] + r.column
        positions = torch.cat([prompt_positions, response_positions])
        self.num_tokens = len(positions)
        self.num_padding = round_up_tokens(self.num_tokens) - self.num_tokens
        self.position_ids = F.pad(positions, (0, self.num_padding))[None]
        self.predicts_N = self._predicting_index(PaddedBlock(response_lengths, device, left=False))
        self._buckets = self._by_length(read_lengths, device)
        self._masks: dict[int | None, tuple[Tensor, list[Tensor]]] = {}

    def predict_only(self, is_target_N: Tensor) -> None:
        """Leave response tokens out of predicts_N; is_target_N: False for those, in order."""
        self.predicts_N = self.predicts_N[is_target_N]

    def _predicting_index(self, targets: PaddedBlock) -> Tensor:
        p, r = self.prompts, self.responses
        flat = torch.zeros(r.rows, r.width, dtype=torch.long, device=p.row.device)
        flat[r.row, r.column] = torch.arange(len(r.row), device=p.row.device)
        flat += self.num_prompt_tokens
        last_prompt_token = p.lengths.cumsum(0) - 1
        before = torch.cat([last_prompt_token[self.group_R][:, None], flat], dim=1)
        return before[targets.row, targets.column]

    def _by_length(self, lengths: Sequence[int], device: torch.device) -> list[_Bucket]:
        """Responses up to SHORTEST_BUCKET tokens, then up to twice as many, and so on."""
        rows: dict[int, list[int]] = {}
        for row, length in enumerate(lengths):
            if length:
                size = max(SHORTEST_BUCKET, 1 << (length - 1).bit_length())
                rows.setdefault(size, []).append(row)
        return [
            _Bucket(
                torch.tensor(rows[size], device=device), self.responses, self.prompts, self.group_R
            )
            for size in sorted(rows)
        ]

    def _masks_for(self, window: int | None) -> tuple[Tensor, list[Tensor]]:
        """Boolean masks [P, 1, Tp, Tp] of the prompts and one per bucket of responses."""
        if window not in self._masks:
            p = self.prompts
            at = torch.arange(p.width, device=p.row.device)
            of_prompt = (at[:, None] >= at)[None] & p.mask[:, None, :]
            if window is not None:
                of_prompt = of_prompt & (at[:, None] - at < window)
            # a padded query attends to itself, because an empty row would give NaN
            of_prompt = of_prompt | torch.eye(p.width, dtype=torch.bool, device=at.device)
            of_responses = [bucket.mask(window) for bucket in self._buckets]
            self._masks[window] = of_prompt[:, None], of_responses
        return self._masks[window]

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float | None,
        window: int | None,
    ) -> Tensor:
        """Prompts attend to themselves, responses to their prompt and themselves."""
        of_prompt, of_responses = self._masks_for(window)
        n = self.num_prompt_tokens
        qp, kp, vp = (self.prompts.pad(x[:n]) for x in (q, k, v))
        of_prompts = self.prompts.flatten(masked_attention(qp, kp, vp, of_prompt, scale))
        parts, order = [of_prompts], [torch.arange(n, device=q.device)]
        for bucket, mask in zip(self._buckets, of_responses, strict=True):
            flat = n + bucket.flat
            qr, kr, vr = (bucket.block.pad(x[flat]) for x in (q, k, v))
            cut = self.prompts.width - bucket.prompt_width
            keys = torch.cat([kp[:, :, cut:][bucket.group], kr], dim=2)
            values = torch.cat([vp[:, :, cut:][bucket.group], vr], dim=2)
            parts.append(bucket.block.flatten(masked_attention(qr, keys, values, mask, scale)))
            order.append(flat)
        padding = parts[0].new_zeros(self.num_padding, *parts[0].shape[1:])
        if len(parts) <= 2:
            return torch.cat([*parts, padding])
        return torch.cat([torch.cat(parts)[torch.cat(order).argsort()], padding])


class CachedLayout:
    """Keys and values of rows that decode side by side, one query per row.

    Tokens before the first decoded one are right-aligned in prompt_width columns, so every
    unfinished row writes the same column at each step. Buffers grow with the responses; `keep`
    drops finished rows. visible_R: which columns of [rows, prompt_width] have a token.
    """

    def __init__(self, visible_R: Tensor, *, max_new_tokens: int) -> None:
        self.visible_R = visible_R
        self.prompt_width = visible_R.shape[1]
        self.last_column = self.prompt_width + max_new_tokens
        self.column: int | None = None
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        self._bias: Tensor | None = None

    @property
    def num_rows(self) -> int:
        """Rows still in the buffers."""
        return len(self.visible_R)

    def advance(self) -> None:
        """Move to the next response column; the first call ends the prefill."""
        self.column = self.prompt_width if self.column is None else self.column + 1

    def keep(self, rows: Tensor) -> None:
        """Drop every row that is not listed."""
        self.visible_R, self._bias = self.visible_R[rows], None
        filled = self.prompt_width if self.column is None else self.column + 1
        for buffers in (self._keys, self._values):
            for layer, old in buffers.items():
                old[: len(rows), :, :filled] = old[:, :, :filled].index_select(0, rows)
                buffers[layer] = old[: len(rows)]

    @property
    def buffers(self) -> dict[int, tuple[Tensor, Tensor]]:
        """(keys, values) of each layer, each [rows, KV, columns, head]."""
        return {layer: (keys, self._values[layer]) for layer, keys in self._keys.items()}

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float | None,
        window: int | None,
    ) -> Tensor:
        """One query per row attends to the row's past and to itself."""
        keys, values = self._room(layer)
        at = self.column
        assert at is not None
        keys[:, :, at], values[:, :, at] = k, v
        start = 0 if window is None else max(0, at + 1 - window)
        n, num_kv = keys.shape[:2]
        bias = self._bias_to(q.dtype)[..., start : at + 1]
        grouped = q.view(n, num_kv, q.shape[1] // num_kv, q.shape[2])
        seen = slice(start, at + 1)
        out = F.scaled_dot_product_attention(
            grouped, keys[:, :, seen], values[:, :, seen], attn_mask=bias, scale=scale
        )
        return out.reshape(n, q.shape[1], -1)

    def _empty(self, block: Tensor) -> Tensor:
        """A buffer for [rows, KV, columns, head] like this block, with room for some steps."""
        width = min(self.prompt_width + 64, self.last_column)
        return block.new_empty(self.num_rows, block.shape[1], width, block.shape[3])

    def _room(self, layer: int) -> tuple[Tensor, Tensor]:
        assert self.column is not None
        if self.column >= self._keys[layer].shape[2]:
            for buffers in (self._keys, self._values):
                old = buffers[layer]
                width = min(self.last_column, old.shape[2] * 3 // 2 + 1)
                new = old.new_empty(*old.shape[:2], width, old.shape[3])
                new[:, :, : self.column] = old[:, :, : self.column]
                buffers[layer] = new
        return self._keys[layer], self._values[layer]

    def _bias_to(self, dtype: torch.dtype) -> Tensor:
        if self._bias is None or self._bias.dtype != dtype:
            bias = torch.zeros(self.num_rows, 1, 1, self.last_column, dtype=dtype)
            bias = bias.to(self.visible_R.device)
            bias[:, 0, 0, : self.prompt_width].masked_fill_(~self.visible_R, float("-inf"))
            self._bias = bias
        return self._bias


class DecodeLayout(CachedLayout):
    """`CachedLayout` that begins with prompts, each computed once for its group."""

    def __init__(
        self,
        prompt_lengths: Sequence[int],
        group: Sequence[int],
        *,
        max_new_tokens: int,
        device: torch.device,
    ) -> None:
        self.prefill = GroupLayout(prompt_lengths, [], [], device)
        self.group_R = torch.tensor(group, dtype=torch.long, device=device)
        super().__init__(self.prefill.prompts.mask[self.group_R], max_new_tokens=max_new_tokens)

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float | None,
        window: int | None,
    ) -> Tensor:
        """In prefill, prompts attend to themselves; then see CachedLayout."""
        if self.column is not None:
            return super().attend(layer, q, k, v, scale=scale, window=window)
        for buffers, flat in ((self._keys, k), (self._values, v)):
            block = self.prefill.prompts.pad(flat[: self.prefill.num_tokens])
            room = self._empty(block)
            room[:, :, : self.prompt_width] = block[self.group_R]
            buffers[layer] = room
        return self.prefill.attend(layer, q, k, v, scale=scale, window=window)
