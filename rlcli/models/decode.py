"""Decoding: logits of each row's next token, with keys and values kept, also between turns.

A decoder is begun, then stepped until every row has ended. Rows that an environment has replied to
are resumed: only the tokens behind those whose keys and values are known are read.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from rlcli.models.forward import CausalLM
from rlcli.models.packed_attention import CachedLayout, DecodeLayout, round_up_tokens
from rlcli.models.resumed_layout import KeptRows, ResumedLayout

Step = tuple[Tensor, Tensor]
"""(logits of the rows that have not ended, their row numbers)."""
DROP_SHARE = 8
"""Finished rows are dropped once they exceed 1 in 8, because moving the KV cache costs time."""
MAX_REREAD_TOKENS = 65_536
"""Tokens of rows that are read again side by side, where keys and values are not kept."""


class Decoder(Protocol):
    """Rows of one call, from their prompts to the end of their last turn."""

    def begin(self) -> Step:
        """Read the prompts."""
        ...

    def step(self, tokens: Tensor, ended: Tensor) -> Step:
        """Read one more token of each row. ended: rows that need no further logits."""
        ...

    def batches(self, rows: Sequence[int], token_ids: Sequence[Sequence[int]]) -> list[list[int]]:
        """The rows, in order, as batches to be resumed one after the other."""
        ...

    def resume(
        self, rows: Sequence[int], token_ids: Sequence[Sequence[int]], *, max_new_tokens: int
    ) -> Step:
        """Go on with some of the rows, which have all ended. token_ids: whole rows."""
        ...


def make_decoder(
    lm: CausalLM,
    prompts: Sequence[Sequence[int]],
    group: Sequence[int],
    *,
    max_new_tokens: int,
    pad_token_id: int,
    keeps_rows: bool = False,
) -> Decoder:
    """The decoder that is exact for this model.

    group: prompt index of each row. keeps_rows: whether rows may be resumed.
    """
    if lm.packed:
        return PackedDecoder(
            lm,
            prompts,
            group,
            max_new_tokens=max_new_tokens,
            pad_token_id=pad_token_id,
            keeps_rows=keeps_rows,
        )
    return PaddedDecoder(lm.model, [prompts[g] for g in group], pad_token_id=pad_token_id)


class PackedDecoder:
    """A decoder on flat tokens: each prompt is computed once, finished rows leave the batch."""

    def __init__(
        self,
        lm: CausalLM,
        prompts: Sequence[Sequence[int]],
        group: Sequence[int],
        *,
        max_new_tokens: int,
        pad_token_id: int,
        keeps_rows: bool,
    ) -> None:
        self._lm, self._prompts, self._pad = lm, prompts, pad_token_id
        first = DecodeLayout(
            [len(p) for p in prompts], group, max_new_tokens=max_new_tokens, device=lm.device
        )
        self._first = first
        self._layout: CachedLayout = first
        self._kept = KeptRows(len(group), lm.device) if keeps_rows else None

    def begin(self) -> Step:
        """See Decoder."""
        first = self._first
        ids = torch.tensor([token for p in self._prompts for token in p], device=self._lm.device)
        hidden = self._lm.hidden(ids, first.prefill.position_ids, first)
        lengths = first.prefill.prompts.lengths
        logits = self._lm.logits(hidden[lengths.cumsum(0) - 1])[first.group_R]
        rows = torch.arange(len(first.group_R), device=self._lm.device)
        return self._open(logits, rows, lengths[first.group_R])

    def step(self, tokens: Tensor, ended: Tensor) -> Step:
        """See Decoder."""
        padding = tokens.new_full(self._done.shape, self._pad)
        padding[self._live] = tokens
        self._done[self._live] = ended
        if self._kept is not None:
            now = self._live[ended]
            self._kept.note_lengths(self._rows[now], self._positions[now])
        kept = round_up_tokens(int((~self._done).sum()))
        if (len(self._done) - kept) * DROP_SHARE >= len(self._done):
            keep = self._done.int().argsort(stable=True)[:kept].sort().values
            if self._kept is not None:
                is_dropped = torch.ones_like(self._done).index_fill(0, keep, False)
                self._kept.store(self._layout, self._rows, is_dropped)
            self._layout.keep(keep)
            self._rows, self._positions = self._rows[keep], self._positions[keep]
            self._done, padding = self._done[keep], padding[keep]
        self._layout.advance()
        hidden = self._lm.hidden(padding, self._positions[None], self._layout)
        logits = self._lm.logits(hidden)
        self._positions = self._positions + 1
        self._live = (~self._done).nonzero()[:, 0]
        return logits[self._live], self._rows[self._live]

    def batches(self, rows: Sequence[int], token_ids: Sequence[Sequence[int]]) -> list[list[int]]:
        """See Decoder."""
        return [[*rows]]

    def resume(
        self, rows: Sequence[int], token_ids: Sequence[Sequence[int]], *, max_new_tokens: int
    ) -> Step:
        """See Decoder."""
        kept, live = self._kept, self._live
        assert kept is not None
        kept.note_lengths(self._rows[live], self._positions[live])
        kept.store(self._layout, self._rows, torch.ones_like(self._done))
        known = kept.lengths(rows)
        new_ids = [ids[n:] for ids, n in zip(token_ids, known, strict=True)]
        layout = ResumedLayout(
            kept.take(rows), known, [len(ids) for ids in new_ids], max_new_tokens=max_new_tokens
        )
        self._layout = layout
        hidden: list[Tensor] = []
        for part in layout.passes:
            layout.choose(part)
            flat = [token for row in part.rows for token in new_ids[row]]
            ids = torch.tensor(flat, device=self._lm.device)
            hidden.append(self._lm.hidden(ids, part.position_ids, layout)[part.last])
        order = torch.tensor([row for part in layout.passes for row in part.rows])
        logits = self._lm.logits(torch.cat(hidden)[order.argsort().to(self._lm.device)])
        numbers = torch.tensor(rows, device=self._lm.device)
        lengths = torch.tensor([len(ids) for ids in token_ids], device=self._lm.device)
        return self._open(logits, numbers, lengths)

    def _open(self, logits: Tensor, rows: Tensor, positions: Tensor) -> Step:
        self._rows, self._positions = rows, positions
        self._done = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        self._live = torch.arange(len(rows), device=rows.device)
        return logits, rows


class PaddedDecoder:
    """A decoder with the model's own cache, for models that cannot run on flat tokens.

    Finished rows stay in the batch with padding as input, because rows cannot be removed from an
    unknown type of cache. For the same reason rows that are resumed are read again as a whole.
    """

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], *, pad_token_id: int) -> None:
        self._model, self._prompts, self._pad = model, prompts, pad_token_id

    def begin(self) -> Step:
        """See Decoder."""
        return self._open(self._prompts, range(len(self._prompts)))

    def step(self, tokens: Tensor, ended: Tensor) -> Step:
        """See Decoder."""
        logits, live = self._steps.send((tokens, ended))
        return logits, self._rows[live]

    def batches(self, rows: Sequence[int], token_ids: Sequence[Sequence[int]]) -> list[list[int]]:
        """See Decoder."""
        out: list[list[int]] = []
        room = 0
        for row, ids in zip(rows, token_ids, strict=True):
            if len(ids) > room:
                out.append([])
                room = MAX_REREAD_TOKENS
            out[-1].append(row)
            room -= len(ids)
        return out

    def resume(
        self, rows: Sequence[int], token_ids: Sequence[Sequence[int]], *, max_new_tokens: int
    ) -> Step:
        """See Decoder."""
        return self._open(token_ids, rows)

    def _open(self, token_ids: Sequence[Sequence[int]], rows: Sequence[int]) -> Step:
        self._steps = _decode_padded(self._model, token_ids, pad_token_id=self._pad)
        self._rows = torch.tensor(rows, device=self._model.device)
        logits, live = next(self._steps)
        return logits, self._rows[live]


def _decode_padded(model: Any, prompts: Sequence[Sequence[int]], *, pad_token_id: int) -> Any:
    """Generator of (logits of unfinished rows, their indices); send it (tokens, ended).

    Prompts are left-padded.
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
    # transformers 5.24 renamed the argument and the output; a checkpoint's own code may use either
    # name with any version of transformers
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
