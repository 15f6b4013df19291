"""Attention of rows that go on: new tokens are read behind those whose keys and values are known.

Rows that end a turn leave the batch; `KeptRows` keeps their keys and values. `ResumedLayout` reads
the tokens behind them, and is then a `CachedLayout` like that of a first turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rlcli.models.packed_attention import (
    CachedLayout,
    PaddedBlock,
    masked_attention,
    round_up_tokens,
)

MAX_PASS_TOKENS = 65_536
"""New tokens that are read side by side."""
MAX_PASS_SCORES = 2**26
"""Pairs of a new and any other token in a pass: their mask takes a byte or more each."""

Cache = dict[int, tuple[Tensor, Tensor]]
"""(keys, values) of each layer, [tokens, KV, head]."""


class KeptRows:
    """Keys and values of rows that have left the batch, by row number."""

    def __init__(self, num_rows: int, device: torch.device) -> None:
        self._lengths_R = torch.zeros(num_rows, dtype=torch.long, device=device)
        self._rows: list[Tensor] = []
        self._parts: list[Cache] = []

    def note_lengths(self, rows: Tensor, lengths: Tensor) -> None:
        """The number of tokens of each row that have keys and values when it ends its turn."""
        self._lengths_R[rows] = lengths

    def lengths(self, rows: Sequence[int]) -> list[int]:
        """Tokens with keys and values of each row."""
        return self._lengths_R[list(rows)].tolist()

    def store(self, layout: CachedLayout, rows: Tensor, is_leaving: Tensor) -> None:
        """Copy those of the rows of a layout that leave it. rows: numbers of all its rows."""
        index = is_leaving.nonzero()[:, 0]
        if not len(index):
            return
        first = layout.prompt_width - layout.visible_R[index].sum(1)
        lengths = self._lengths_R[rows[index]]
        part: Cache = {}
        for layer, (keys, values) in layout.buffers.items():
            at = torch.arange(keys.shape[2], device=keys.device)
            is_known = (at >= first[:, None]) & (at < (first + lengths)[:, None])
            row, column = is_known.nonzero(as_tuple=True)
            part[layer] = keys[index[row], :, column], values[index[row], :, column]
        self._rows.append(rows[index])
        self._parts.append(part)

    def take(self, rows: Sequence[int]) -> Cache:
        """The tokens of these rows, one row after the other; nothing is kept afterwards."""
        stored = torch.cat(self._rows)
        lengths = self._lengths_R[stored]
        begins = torch.zeros_like(self._lengths_R)
        begins[stored] = lengths.cumsum(0) - lengths
        device = stored.device
        index = torch.cat(
            [
                torch.arange(begin, begin + length, device=device)
                for begin, length in zip(
                    begins[list(rows)].tolist(), self.lengths(rows), strict=True
                )
            ]
        )
        out: Cache = {}
        for layer in [*self._parts[0]]:
            pairs = [part.pop(layer) for part in self._parts]
            keys, values = (torch.cat(tensors) for tensors in zip(*pairs, strict=True))
            out[layer] = keys[index], values[index]
        self._rows, self._parts = [], []
        return out


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPass:
    """Rows whose new tokens are read in one pass.

    block: of the new tokens. columns: of each new token in the buffers. position_ids: padded.
    last: index of each row's last new token.
    """

    rows: Sequence[int]
    block: PaddedBlock
    columns: Tensor
    position_ids: Tensor
    last: Tensor


class ResumedLayout(CachedLayout):
    """`CachedLayout` that begins with new tokens behind known ones; one at least in each row.

    known: keys and values, one row after the other. passes: to be chosen one after the other,
    each before the forward pass over its new tokens.
    """

    def __init__(
        self,
        known: Cache,
        known_lengths: Sequence[int],
        new_lengths: Sequence[int],
        *,
        max_new_tokens: int,
    ) -> None:
        device = next(iter(known.values()))[0].device
        self._known = torch.tensor(known_lengths, device=device)
        total = self._known + torch.tensor(new_lengths, device=device)
        width = int(total.max())
        at = torch.arange(width, device=device)
        self._first = width - total
        super().__init__(at >= self._first[:, None], max_new_tokens=max_new_tokens)
        is_known = self.visible_R & (at < (self._first + self._known)[:, None])
        row, column = is_known.nonzero(as_tuple=True)
        for layer in [*known]:
            for buffers, flat in zip((self._keys, self._values), known.pop(layer), strict=True):
                room = self._empty(flat[:1].transpose(0, 1)[None])
                room[:, :, :width] = 0.0  # a masked NaN would still be one
                room[row, :, column] = flat
                buffers[layer] = room
        self.passes = [self._make_pass(rows, new_lengths) for rows in self._split(new_lengths)]
        self._pass = self.passes[0]

    def choose(self, part: ReadPass) -> None:
        """Read the new tokens of these rows next."""
        self._pass = part

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
        """New tokens attend to their row up to themselves; then see CachedLayout."""
        if self.column is not None:
            return super().attend(layer, q, k, v, scale=scale, window=window)
        block = self._pass.block
        rows = torch.tensor(self._pass.rows, device=q.device)
        keys, values = self._keys[layer], self._values[layer]
        n = len(block.row)
        keys[rows[block.row], :, self._pass.columns] = k[:n]
        values[rows[block.row], :, self._pass.columns] = v[:n]
        keys, values = (x[rows, :, : self.prompt_width] for x in (keys, values))
        mask = self._mask(rows, block.width, window)
        out = block.flatten(masked_attention(block.pad(q[:n]), keys, values, mask, scale))
        return F.pad(out, (0, 0, 0, 0, 0, len(q) - n))

    def _mask(self, rows: Tensor, num_new: int, window: int | None) -> Tensor:
        """Boolean [rows, 1, new, columns]; True: may attend."""
        at = torch.arange(self.prompt_width, device=rows.device)
        query = at[self.prompt_width - num_new :, None]
        is_past = at <= query
        if window is not None:
            is_past = is_past & (query - at < window)
        mask = is_past & self.visible_R[rows][:, None, :]
        # a padded query attends to itself, because an empty row would give NaN
        return (mask | (at == query))[:, None]

    def _split(self, new_lengths: Sequence[int]) -> list[list[int]]:
        """The rows by falling numbers of new tokens, as many in a pass as fit."""
        parts: list[list[int]] = []
        room = 0
        for row in sorted(range(len(new_lengths)), key=lambda row: -new_lengths[row]):
            if not room:
                parts.append([])
                length = max(1, new_lengths[row])
                room = max(1, min(MAX_PASS_TOKENS, MAX_PASS_SCORES // self.prompt_width) // length)
            parts[-1].append(row)
            room -= 1
        return parts

    def _make_pass(self, rows: list[int], new_lengths: Sequence[int]) -> ReadPass:
        device = self._first.device
        block = PaddedBlock([new_lengths[row] for row in rows], device, left=True)
        columns = self.prompt_width - block.width + block.column
        positions = columns - self._first[torch.tensor(rows, device=device)][block.row]
        padding = round_up_tokens(len(positions)) - len(positions)
        return ReadPass(
            rows=rows,
            block=block,
            columns=columns,
            position_ids=F.pad(positions, (0, padding))[None],
            last=block.lengths.cumsum(0) - 1,
        )
