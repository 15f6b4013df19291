"""Run a few random tokens through the model's own forward, the trainer's and the sampler's."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlcli.models.decode import make_decoder
from rlcli.models.forward import CausalLM
from rlcli.models.packed_attention import GroupLayout

PROMPT_LENGTHS, GROUP, RESPONSE_LENGTHS = (3, 7), (0, 0, 1), (3, 2, 3)


class Probe:
    """Distributions [P, V] over each response token of a few random rows, computed in four ways."""

    def __init__(self, lm: CausalLM) -> None:
        self.lm = lm
        draw = torch.Generator().manual_seed(0)
        sizes = [*PROMPT_LENGTHS, *RESPONSE_LENGTHS]
        usable = _usable_ids(lm.model)
        drawn = usable[torch.randint(0, len(usable), (sum(sizes),), generator=draw)].split(sizes)
        self.prompts, self.responses = drawn[:2], drawn[2:]
        self.pad_token_id = int(usable[0])
        self.windows: dict[int, int | None] = {}
        """Attention window of each layer in the last packed pass."""

    def plain(self) -> Tensor:
        """Distributions from the model's own forward over a right-padded batch."""
        ids_BT, mask_BT, predicts_BT = self._padded_batch()
        model: Any = self.lm.model
        out = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)
        return _probabilities(out.logits[predicts_BT])

    def alone(self) -> Tensor:
        """Distributions from the model's own forward over the longest row alone [P of row, V]."""
        ids = torch.cat([self.prompts[1], self.responses[2]]).to(self.lm.device)
        model: Any = self.lm.model
        out = model(input_ids=ids[None], use_cache=False)
        return _probabilities(out.logits[0, PROMPT_LENGTHS[1] - 1 : -1])

    def trained(self) -> Tensor:
        """Distributions from the trainer's pass."""
        if self.lm.packed:
            layout = _ProbeLayout(PROMPT_LENGTHS, RESPONSE_LENGTHS, GROUP, self.lm.device)
            parts = [*self.prompts, *(response[:-1] for response in self.responses)]
            ids = torch.cat(parts).to(self.lm.device)
            hidden = self.lm.hidden(ids, layout.position_ids, layout)[layout.predicts_N]
            self.windows = layout.windows
        else:
            ids_BT, mask_BT, predicts_BT = self._padded_batch()
            hidden = self.lm.padded_hidden(ids_BT, mask_BT)[predicts_BT]
        return _probabilities(self.lm.logits(hidden))

    def sampled(self) -> Tensor:
        """Distributions from the sampler's passes, token by token."""
        prompts = [prompt.tolist() for prompt in self.prompts]
        longest, pad = max(RESPONSE_LENGTHS), self.pad_token_id
        decoder = make_decoder(self.lm, prompts, GROUP, max_new_tokens=longest, pad_token_id=pad)
        logits_by_row: list[list[Tensor]] = [[] for _ in GROUP]
        logits, live = decoder.begin()
        while True:
            numbers = live.tolist()
            for number, row in zip(numbers, logits, strict=True):
                logits_by_row[number].append(row)
            at = [len(logits_by_row[number]) for number in numbers]
            if max(at) == longest:
                break
            tokens = [self.responses[n][t - 1] for n, t in zip(numbers, at, strict=True)]
            ended = [t == RESPONSE_LENGTHS[n] for n, t in zip(numbers, at, strict=True)]
            device = self.lm.device
            logits, live = decoder.step(
                torch.stack(tokens).to(device), torch.tensor(ended, device=device)
            )
        return _probabilities(torch.stack([row for rows in logits_by_row for row in rows]))

    def _padded_batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """(token ids, attention mask, positions that predict a response token), all [B, T]."""
        rows = [
            torch.cat([self.prompts[group], response])
            for group, response in zip(GROUP, self.responses, strict=True)
        ]
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self.pad_token_id)
        mask, predicts = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        for row, tokens in enumerate(rows):
            start = PROMPT_LENGTHS[GROUP[row]] - 1
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
            predicts[row, start : start + RESPONSE_LENGTHS[row]] = True
        device = self.lm.device
        return ids.to(device), mask.to(device), predicts.to(device)


class _ProbeLayout(GroupLayout):
    """A layout that records the attention window of each layer."""

    def __init__(self, *lengths: Any) -> None:
        super().__init__(*lengths)
        self.windows: dict[int, int | None] = {}

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
        """See GroupLayout."""
        self.windows[layer] = window
        return super().attend(layer, q, k, v, scale=scale, window=window)


def _usable_ids(model: PreTrainedModel) -> Tensor:
    """Token ids with an embedding, except the special ones in the configuration."""
    config: Any = model.config
    named: set[int] = set()
    for part in (config, config.get_text_config()):
        for name, value in part.to_dict().items():
            if name.endswith(("token_id", "token_index")):
                named.update([value] if isinstance(value, int) else value or [])
    rows = num_token_ids(model)
    ids = torch.arange(min(rows, getattr(config.get_text_config(), "vocab_size", rows)))
    keep = torch.ones(len(ids), dtype=torch.bool)
    keep[[i for i in named if 0 <= i < len(ids)]] = False
    return ids[keep] if keep.any() else ids


def num_token_ids(model: PreTrainedModel) -> int:
    """Number of rows in the token embedding."""
    embeddings: Any = model.get_input_embeddings()
    rows = getattr(embeddings, "num_embeddings", None)
    return int(rows if rows is not None else embeddings.weight.shape[0])


def _probabilities(logits_PV: Tensor) -> Tensor:
    return logits_PV.float().softmax(-1)


def gap_between(one_PV: Tensor, other_PV: Tensor) -> float:
    """Mean over positions of sum |p - q|, which bounds the mean difference of any probability."""
    if one_PV.shape != other_PV.shape:
        return math.inf
    return float((one_PV - other_PV).abs().sum(-1).mean())
