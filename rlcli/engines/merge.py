"""The weights of a policy under the names of its plain model, with LoRA merged in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

Named = Iterator[tuple[str, torch.Tensor]]
Whole = Callable[[list[Any]], AbstractContextManager[Any]]
"""Gathers the given sharded parameters; a collective call, so every rank must enter it.

It yields None if the parameters themselves are whole inside, else the whole tensors by id of the
parameter; modules then hold those inside.
"""
BASE = "base_layer."


@contextmanager
def gather(tensors: list[Any], whole: Whole | None) -> Iterator[Callable[[Any], torch.Tensor]]:
    """A function that gives the whole tensor of each of `tensors`, inside the context."""
    with nullcontext() if whole is None else whole(tensors) as found:
        yield lambda tensor: tensor if found is None else found.get(id(tensor), tensor)


class _Wrappers:
    """The LoRA layers of a model: which names they change and which weights they add to.

    peft nests a wrapper for each weight of a module (fused experts have two), so a name may hold
    `base_layer.` several times.
    """

    def __init__(self, model: nn.Module) -> None:
        self.plain: dict[str, str] = {}
        self.adapters: set[str] = set()
        self.layers: dict[str, list[Any]] = defaultdict(list)
        paths = {path for path, module in model.named_modules() if isinstance(module, LoraLayer)}
        for path, layer in model.named_modules():
            if path not in paths:
                continue
            top = path
            while top.endswith(f".{BASE[:-1]}") and top.removesuffix(f".{BASE[:-1]}") in paths:
                top = top.removesuffix(f".{BASE[:-1]}")
            self.layers[f"{top}.{getattr(layer, 'parameter_name', 'weight')}"].append(layer)
            for name in layer.state_dict():
                if not name.startswith(BASE):
                    self.adapters.add(f"{path}.{name}")
            if f"{path}.{BASE[:-1]}" not in paths:
                inner: Any = cast("Any", layer).get_base_layer()
                self.plain |= {f"{path}.{BASE}{n}": f"{top}.{n}" for n in inner.state_dict()}


@torch.no_grad()
def plain_weights(model: nn.Module, whole: Whole | None = None) -> Named:
    """All weights under the names of the plain model; LoRA is added to its weights in float32.

    Raises: RuntimeError for an adapter whose weight is not found: it would be lost silently.
    """
    wrappers = _Wrappers(model)
    pending = dict(wrappers.layers)
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in wrappers.adapters:
            continue
        name = wrappers.plain.get(name, name)
        layers = pending.pop(name, [])
        parts = [part for layer in layers for part in layer.parameters()]
        parts = [*{id(part): part for part in parts}.values()] or [tensor]
        with gather(parts, whole) as complete:
            tensor = complete(tensor)
            for layer in layers:
                tensor = tensor.float() + layer.get_delta_weight("default").float()
            yield name, tensor
    if pending:
        raise RuntimeError(f"the adapter of {next(iter(pending))} was not merged")
