"""Packed attention as one FlexAttention kernel on CUDA, without padding and score matrix.

Every query of a group layout attends to two intervals of the flat keys: a part of its prompt, and
its own segment up to itself. Three numbers per query define them, and the lists of 128 x 128
blocks to visit, without an N x N mask. Source: arXiv 2412.05496.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from rlcli.models.packed_attention import GroupLayout, Layout, attend_by_layout

FLEX_ATTENTION = "rlcli_packed_flex"
BLOCK = 128
FEWEST_BLOCKS = 2
"""A dimension of 1 compiles separately, and torch uses its decoding kernel under 128 queries."""
RECOMPILE_LIMIT = 64
"""Dtypes, gradient modes, adapters, frozen weights and head shapes compile separately; lengths and
windows do not."""
PROBE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2}
"""Largest error as a share of the largest value; float32 may be TF32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervals:
    """Flat keys j visible to query i: prompt_from <= j < prompt_to and own_from <= j <= i."""

    prompt_from_N: Tensor
    prompt_to_N: Tensor
    own_from_N: Tensor


def visible_keys(layout: GroupLayout, window: int | None) -> Intervals:
    """Int32 intervals of every flat token and of the block padding, which attends to itself."""
    p, r, n = layout.prompts, layout.responses, layout.num_prompt_tokens
    prompt_starts_P = p.lengths.cumsum(0) - p.lengths
    response_starts_R = n + r.lengths.cumsum(0) - r.lengths
    group = layout.group_R[r.row]
    none = torch.zeros_like(p.row)
    prompt_from = torch.cat([none, prompt_starts_P[group]])
    prompt_to = torch.cat([none, (prompt_starts_P + p.lengths)[group]])
    own_from = torch.cat([prompt_starts_P[p.row], response_starts_R[r.row]])
    at = torch.arange(len(own_from), device=own_from.device)
    if window is not None:
        too_far = (layout.position_ids[0, : len(at)] - window + 1).clamp(min=0)
        prompt_from = torch.minimum(prompt_from + too_far, prompt_to)
        own_from = torch.maximum(own_from, at - window + 1)
    whole = -(-layout.position_ids.shape[1] // BLOCK) * BLOCK
    padding = max(whole, FEWEST_BLOCKS * BLOCK) - len(at)
    beyond = torch.arange(len(at), len(at) + padding, device=at.device)
    return Intervals(
        prompt_from_N=F.pad(prompt_from, (0, padding)).int(),
        prompt_to_N=F.pad(prompt_to, (0, padding)).int(),
        own_from_N=torch.cat([own_from, beyond]).int(),
    )


def block_tables(seen: Intervals) -> tuple[Tensor, Tensor]:
    """(partial, full): boolean [n, n] tables of query blocks by key blocks.

    A key block is full if all 128 queries see all of it within one interval.
    """
    at = torch.arange(len(seen.own_from_N), device=seen.own_from_N.device)
    ends = ((seen.own_from_N.long(), at + 1), (seen.prompt_from_N.long(), seen.prompt_to_N.long()))
    n = len(at) // BLOCK
    touched, whole = (torch.zeros(n, n + 1, dtype=torch.long, device=at.device) for _ in range(2))
    row = at // BLOCK * (n + 1)
    for start, end in ends:
        _mark(touched, row, start // BLOCK, -(-end // BLOCK) * (end > start))
        _mark(whole, row, -(-start // BLOCK), end // BLOCK)
    full = whole.cumsum(1)[:, :n] == BLOCK
    return (touched.cumsum(1)[:, :n] > 0) & ~full, full


def _mark(steps: Tensor, row: Tensor, first: Tensor, last: Tensor) -> None:
    """Add 1 at column `first` and subtract it at `last`; an empty range adds nothing."""
    one = torch.ones_like(first)
    steps.view(-1).index_add_(0, row + first, one)
    steps.view(-1).index_add_(0, row + torch.maximum(first, last), -one)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlexMask:
    """The intervals of a layout, and the blocks to visit by query block and by key block.

    blocks: counts and indices of partial and full blocks, in the order that BlockMask takes.
    """

    seen: Intervals
    blocks: tuple[Tensor, ...]


def flex_mask(layout: GroupLayout, window: int | None) -> FlexMask:
    """The mask of a layout; the kernel skips blocks without visible keys."""
    seen = visible_keys(layout, window)
    partial, full = block_tables(seen)
    tables = (partial, full, partial.T, full.T)
    return FlexMask(seen=seen, blocks=tuple(x for table in tables for x in _true_first(table)))


def _true_first(table: Tensor) -> tuple[Tensor, Tensor]:
    """(counts [1, 1, n], columns [1, 1, n, n]) of a table, with columns of true entries first."""
    columns = table.int().argsort(dim=-1, descending=True, stable=True)
    return table.sum(-1).int()[None, None], columns.int()[None, None]


_MASKS: WeakKeyDictionary[GroupLayout, dict[int | None, FlexMask]] = WeakKeyDictionary()
"""Cache by layout and window, because every layer and every recomputation needs the mask."""

Kernel = Callable[[Tensor, Tensor, Tensor, FlexMask, float | None], Tensor]


def attend_blocks(q: Tensor, k: Tensor, v: Tensor, mask: FlexMask, scale: float | None) -> Tensor:
    """Attention [blocks, 128, H, head] of q, k and v split into blocks of tokens."""
    prompt_from, prompt_to = mask.seen.prompt_from_N, mask.seen.prompt_to_N
    own_from = mask.seen.own_from_N

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        in_prompt = (key >= prompt_from[query]) & (key < prompt_to[query])
        return in_prompt | ((key >= own_from[query]) & (key <= query))

    # computed here from the number of blocks, lengths are symbolic multiples of 128 in the compiler
    length = q.shape[0] * BLOCK
    ends = (BLOCK, BLOCK), sees
    block_mask = BlockMask((length, length), *mask.blocks, *ends)  # type: ignore[reportCallIssue]
    q, k, v = (x.flatten(0, 1).transpose(0, 1)[None] for x in (q, k, v))
    gqa = q.shape[1] != k.shape[1]
    out = flex_attention(q, k, v, block_mask=block_mask, scale=scale, enable_gqa=gqa)
    return out[0].transpose(0, 1).unflatten(0, (-1, BLOCK))  # type: ignore[union-attr]


def allow_variants() -> None:
    """Raise the compiler's limit to the number of function variants that a run needs."""
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, RECOMPILE_LIMIT)


@cache
def compiled_kernel() -> Kernel:
    """`attend_blocks` as one kernel for any number of blocks, compiled at the first call."""
    allow_variants()
    # fullgraph raises instead of running the uncompiled function, which stores all scores
    return torch.compile(attend_blocks, fullgraph=True, dynamic=True)


class FlexLayout:
    """A group layout whose attention is one kernel."""

    def __init__(self, layout: GroupLayout) -> None:
        self._layout = layout
        self._masks = _MASKS.setdefault(layout, {})

    def _mask(self, window: int | None) -> FlexMask:
        if window not in self._masks:
            self._masks[window] = flex_mask(self._layout, window)
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
        mask = self._mask(window)
        padding = len(mask.seen.own_from_N) - len(q)
        device = q.device.type
        is_autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if is_autocast else q.dtype
        q, k, v = (
            F.pad(x.to(dtype), (0, 0, 0, 0, 0, padding)).unflatten(0, (-1, BLOCK))
            for x in (q, k, v)
        )
        for x in (q, k, v):  # otherwise equal numbers of heads and blocks share a symbol
            torch._dynamo.mark_static(x, [1, 2, 3])
        with torch.autocast(device, enabled=False):
            out = compiled_kernel()(q, k, v, mask, scale).flatten(0, 1)
        return F.pad(out[: self._layout.num_tokens], (0, 0, 0, 0, 0, self._layout.num_padding))


def _attend_flex(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    layout: Layout | None = None,
    **other: Any,
) -> tuple[Tensor, None]:
    if isinstance(layout, GroupLayout):  # sampling manages its own KV cache
        layout = FlexLayout(layout)
    return attend_by_layout(module, query, key, value, attention_mask, layout=layout, **other)


AttentionInterface.register(FLEX_ATTENTION, _attend_flex)
AttentionMaskInterface.register(FLEX_ATTENTION, lambda *args, **kwargs: None)


def why_not_flex(model_config: Any, *, device: torch.device, dtype: torch.dtype) -> str | None:
    """Reason not to use the kernel; None if it agrees with bucketed attention.

    Compares outputs and gradients on random heads of this model's shape, over full, partial and
    empty blocks.
    """
    config = model_config.get_text_config()
    heads = config.num_attention_heads
    num_kv = getattr(config, "num_key_value_heads", None) or heads
    head = getattr(config, "qk_head_dim", None) or getattr(config, "head_dim", None)
    head = head or config.hidden_size // heads
    value = getattr(config, "v_head_dim", None) or head
    window = getattr(config, "sliding_window", None)
    layout = GroupLayout((130, 7, 300), (200, 0, 390, 129, 1), (0, 0, 2, 1, 1), device)
    draw = torch.Generator().manual_seed(0)
    n = layout.position_ids.shape[1]
    q, k, v, pull = (
        torch.randn(n, count, width, generator=draw).to(device, dtype)
        for count, width in ((heads, head), (num_kv, head), (num_kv, value), (heads, value))
    )
    # a window is tested if its edge lies inside
    for tried in {None, window and min(window, 150)}:
        exact = _outputs_and_gradients(layout, [x.float() for x in (q, k, v, pull)], tried)
        try:
            flex = _outputs_and_gradients(FlexLayout(layout), [q, k, v, pull], tried)
        except Exception as error:  # compilers raise many types; bucketed attention still works
            return _first_cause(error)
        gaps = [
            float((a.float() - b).abs().max() / b.abs().max())
            for a, b in zip(flex, exact, strict=True)
        ]
        if not max(gaps) <= PROBE_TOLERANCE.get(dtype, 3e-2):
            return f"it differs by {max(gaps):.2g}"
    return None


def _first_cause(error: BaseException) -> str:
    """First line of the original error, which the compiler wraps in its own errors."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


@torch.enable_grad()
def _outputs_and_gradients(
    layout: Layout, tensors: list[Tensor], window: int | None
) -> list[Tensor]:
    q, k, v = (x.detach().requires_grad_() for x in tensors[:3])
    out = layout.attend(0, q, k, v, scale=None, window=window)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), tensors[3])]
