"""Forward passes of a causal language model: flat tokens, padded batches, logits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from rlcli.models.packed_attention import Layout

T = TypeVar("T")


def local_part(tensor: Tensor) -> Tensor:
    """This rank's rows of a sharded tensor (DTensor); other tensors unchanged."""
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


@dataclass(slots=True)
class CausalLM:
    """A transformers model and how to run it. If `packed` is False, only padded batches are exact.

    source_dtype: dtype of the checkpoint, also used to save the trained model.
    """

    model: PreTrainedModel
    packed: bool
    source_dtype: torch.dtype
    notes: list[str] = field(default_factory=list[str])
    head_is_all: bool = False
    """Whether logits are the LM head's unchanged output, without scale, soft cap or cut."""
    root: Any = None
    """FSDP or DeepSpeed module inside whose forward passes must run; None to run directly."""

    @property
    def device(self) -> torch.device:
        """Device on which passes run."""
        return self.model.device if self.root is None else self.root.device

    def run(self, compute: Callable[[], T]) -> T:
        """Run a computation on this model and return its result."""
        return compute() if self.root is None else self.root(compute)

    def hidden(self, token_ids_N: Tensor, position_ids: Tensor, layout: Layout) -> Tensor:
        """Last hidden states of flat tokens [N, D], padded to the number of positions."""
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

        The model's own forward computes them without the decoder, because multipliers, soft caps
        and cut vocabularies differ between architectures.
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
    """The module that maps token ids to last hidden states: it has the embedding, but no head.

    get_decoder() of some models returns the model itself (Llama 4 text, transformers 5.24), a
    model with an LM head (Llama 4 with images) or the LM head (ModernBERT decoder).
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
    """Whether logits are the LM head's output unchanged; calling the head alone saves 0.1 ms."""
    head: Any = lm.model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return False
    large_ND = 30 * torch.randn(4, head.in_features, dtype=lm.model.dtype)  # beyond any clamp
    large_ND = large_ND.to(lm.device)
    return torch.equal(lm.logits(large_ND), head(large_ND).float())


def _without_decoder(model: PreTrainedModel) -> PreTrainedModel:
    """A shallow copy of the model whose decoder returns the hidden states given to it."""
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
    """Wraps a module: subclasses replace its call, attributes are the module's."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class _Float32Head(_Wrapped):
    """An LM head with float32 output, so that later soft caps and scales run in float32."""

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

    def __call__(self, *inputs: Any, inputs_embeds: Any, **keywords: Any) -> Any:
        return _Outputs(last_hidden_state=inputs_embeds)


class _Outputs(BaseModelOutputWithPast):
    """Model outputs; fields that only some decoders have (caches, router logits) are None."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None
