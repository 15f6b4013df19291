"""Forward passes of a causal language model: flat tokens, padded batches, logits, decoding."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from rlcli.packed import DecodeLayout, Layout, in_steps

T = TypeVar("T")
DROP_SHARE = 8
"""Finished rows leave the buffers once they are more than 1 in 8: moving keys costs too."""


def local_part(tensor: Tensor) -> Tensor:
    """This rank's rows of a sharded tensor (DTensor); any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # type: ignore[operator]


@dataclass(slots=True)
class CausalLM:
    """A transformers model and how to run it. `packed` False: only padded batches are right.

    source_dtype: what the checkpoint was stored in, and the trained model is saved in.
    """

    model: PreTrainedModel
    packed: bool
    source_dtype: torch.dtype
    notes: list[str] = field(default_factory=list[str])
    head_is_all: bool = False
    """Logits are the LM head's output: the model's forward does nothing more to them."""
    root: Any = None
    """FSDP root of a sharded model: passes run inside its forward. None if weights are whole."""

    @property
    def device(self) -> torch.device:
        """Where passes are computed."""
        return self.model.device if self.root is None else self.root.device

    def run(self, compute: Callable[[], T]) -> T:
        """Run a computation on this model, and return its result."""
        return compute() if self.root is None else self.root(compute)

    def hidden(self, token_ids_N: Tensor, position_ids: Tensor, layout: Layout) -> Tensor:
        """Last hidden states [N, D] of flat tokens, and of padding where positions are more."""
        decoder: Any = find_decoder(self.model)
        ids = F.pad(token_ids_N, (0, position_ids.shape[1] - len(token_ids_N)))
        out = decoder(
            input_ids=ids[None], position_ids=position_ids, use_cache=False, layout=layout
        )
        return out.last_hidden_state[0]

    def padded_hidden(self, token_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
        """Last hidden states [B, T, D] of a padded batch."""
        decoder: Any = find_decoder(self.model)
        positions = (attention_mask_BT.cumsum(1) - 1).clamp(min=0)
        out = decoder(
            input_ids=token_ids_BT,
            attention_mask=attention_mask_BT,
            position_ids=positions,
            use_cache=False,
        )
        return out.last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 logits [..., V] of hidden states [..., D].

        The model's own forward computes them, with the decoder left out: multipliers, soft caps
        and cut vocabularies differ from one architecture to the next.
        """
        if self.head_is_all:
            plain: Any = self.model.get_output_embeddings()
            return plain(hidden).float()
        head = _without_decoder(self.model)
        flat: Any = type(self.model).forward(
            head, inputs_embeds=hidden.flatten(0, -2)[None], use_cache=False
        )
        return flat.logits[0].float().unflatten(0, hidden.shape[:-1])


def find_decoder(model: PreTrainedModel) -> nn.Module:
    """The module from token ids to last hidden states.

    get_decoder() of some models is the model itself (Llama 4 text, transformers 5.24), a model
    with an LM head (Llama 4 with images) or the LM head (ModernBERT decoder): a decoder is a part
    that holds the embedding, and no head.
    """
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    parts: list[Any] = [model.get_decoder(), *model.children()]
    holders = (p for p in parts if p is not model and _holds(p, embeddings))
    decoder = next(holders, model)
    if decoder is not model and isinstance(decoder, PreTrainedModel) and _holds(decoder, head):
        return find_decoder(decoder)
    return decoder


def _holds(module: nn.Module, part: Any) -> bool:
    return any(inside is part for inside in module.modules())


def head_is_all(lm: CausalLM) -> bool:
    """Whether the model's forward leaves the LM head's output as it is; saves 0.1 ms a call."""
    head: Any = lm.model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return False
    large_ND = 30 * torch.randn(4, head.in_features, dtype=lm.model.dtype)  # beyond any clamp
    large_ND = large_ND.to(lm.device)
    return torch.equal(lm.logits(large_ND), head(large_ND).float())


def _without_decoder(model: PreTrainedModel) -> PreTrainedModel:
    """A shallow copy of the model: its decoder returns the hidden states it is given."""
    decoder, head = find_decoder(model), model.get_output_embeddings()
    alone = copy.copy(model)  # shares its modules with the model
    for name, child in model.named_children():
        if child is head:
            alone.__dict__[name] = _Float32Head(child)
        elif isinstance(child, PreTrainedModel) and child is not decoder and _holds(child, head):
            alone.__dict__[name] = _without_decoder(child)
        elif _holds(child, decoder):
            alone.__dict__[name] = _GivenHidden(child, decoder)
    return alone


class _Wrapped:
    """Attributes of a module, its call replaced."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class _Float32Head(_Wrapped):
    """What follows the head is computed in float32."""

    def __call__(self, hidden: Tensor) -> Tensor:
        return self._module(hidden).float()


class _GivenHidden(_Wrapped):
    """Returns `inputs_embeds` as the last hidden states."""

    def __init__(self, module: nn.Module, decoder: nn.Module) -> None:
        super().__init__(module)
        self._decoder = decoder

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        return self if value is self._decoder else value

    def __call__(self, *inputs: Any, inputs_embeds: Tensor, **keywords: Any) -> Any:
        return _Outputs(last_hidden_state=inputs_embeds)  # type: ignore[arg-type]


class _Outputs(BaseModelOutputWithPast):
    """Outputs that some decoders have (caches, router logits) are None."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


def decode_packed(
    lm: CausalLM,
    prompts: Sequence[Sequence[int]],
    group: Sequence[int],
    *,
    max_new_tokens: int,
    pad_token_id: int,
) -> Any:
    """A generator of (logits of live rows, their row numbers); is sent (tokens, ended).

    group: for each row the number of its prompt, which is read once.
    """
    device = lm.device
    layout = DecodeLayout(
        [len(p) for p in prompts], group, max_new_tokens=max_new_tokens, device=device
    )
    ids = torch.tensor([token for p in prompts for token in p], device=device)
    hidden = lm.hidden(ids, layout.prefill.position_ids, layout)
    last = layout.prefill.prompts.lengths.cumsum(0) - 1
    logits = lm.logits(hidden[last])[layout.group_R]
    rows = torch.arange(len(group), device=device)
    positions = layout.prefill.prompts.lengths[layout.group_R]
    done = torch.zeros(len(group), dtype=torch.bool, device=device)
    while True:
        live = (~done).nonzero()[:, 0]
        tokens, ended = yield logits[live], rows[live]
        padding = tokens.new_full(done.shape, pad_token_id)
        padding[live] = tokens
        done[live] = ended
        kept = in_steps(int((~done).sum()))
        if (len(done) - kept) * DROP_SHARE >= len(done):
            keep = done.int().argsort(stable=True)[:kept].sort().values
            layout.keep(keep)
            rows, positions, padding = rows[keep], positions[keep], padding[keep]
            done = done[keep]
        layout.advance()
        logits = lm.logits(lm.hidden(padding, positions[None], layout))
        positions = positions + 1
