"""The FSDP engine: weights, gradients and optimizer states in shards, by torch's FSDP2.

The passes, losses and micro-batches are the torch engine's. Models come in shards from
`sharded_model`; a pass runs inside the forward of the model's root, which gathers one layer after
the other. All ranks make the same number of passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rlcli.config.schema import TrainConfig
from rlcli.distributed.collectives import named_for_others
from rlcli.engines.merge import Whole
from rlcli.engines.optimizer import MOMENTS, Updater
from rlcli.engines.sharded_checkpoint import ShareState, ShareWriter, StateReader
from rlcli.engines.sharded_model import gather_whole, rows_of
from rlcli.engines.torch_engine import TorchEngine
from rlcli.models.causal_lm import CausalLM
from rlcli.models.forward import local_part


class ShardedUpdater(Updater):
    """AdamW over this rank's rows of every parameter. Backward passes add gradients up."""

    def _clip(self) -> Tensor:
        """The norm of the whole gradient. This rank's rows are clipped as clip_grad_norm_ does."""
        gradients = [local_part(p.grad) for p in self.parameters.values() if p.grad is not None]
        squares = torch.stack([g.float().square().sum() for g in gradients]).sum()
        norm = self.ranks.all_reduce(squares).sqrt()
        share = float((self.grad_clip / (norm + 1e-6)).clamp(max=1.0))
        for gradient in gradients:
            gradient.mul_(share)
        return norm

    def state(self, prefix: str) -> dict[str, Tensor]:
        """This rank's rows of weights and moments, by name; step counts are of rank 0 alone."""
        tensors = super().state(prefix)
        return {
            name: local_part(value)
            for name, value in tensors.items()
            if isinstance(value, DTensor) or self.ranks.is_first
        }

    @torch.no_grad()
    def load_state(self, prefix: str, tensors: Mapping[str, Tensor]) -> None:
        """Take over a state that any engine saved. Raises: KeyError on a missing tensor."""
        assert isinstance(tensors, StateReader)
        for name, parameter in self.parameters.items():
            rows = rows_of(parameter)
            local_part(parameter).copy_(tensors.rows(f"{prefix}.weight.{name}", *rows))
            if f"{prefix}.step.{name}" not in tensors:
                continue
            moments: dict[str, Tensor] = {
                "step": tensors[f"{prefix}.step.{name}"].to(local_part(parameter).device)
            }
            for key in MOMENTS:
                moments[key] = torch.empty_like(parameter)
                local_part(moments[key]).copy_(tensors.rows(f"{prefix}.{key}.{name}", *rows))
            self.adamw.state[parameter] = moments


class FsdpEngine(TorchEngine):
    """The torch engine on models in shards."""

    in_lockstep = True
    loads_sharded = True

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._writer = ShareWriter()

    @classmethod
    def shards_weights(cls, train: TrainConfig) -> bool:
        """Always."""
        return True

    def _updater(self, model: nn.Module, *, lr: float, grad_clip: float) -> Updater:
        named, train = model.named_parameters(), self.config.train
        return ShardedUpdater(named, train, lr=lr, grad_clip=grad_clip, ranks=self.ranks)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The policy's parameters by name, each gathered whole; every rank must call this.

        They have the dtype of the forward pass. With LoRA only the trained ones come: the sampler
        has its own copy of the others.
        """
        is_lora, dtype = self.peft_model is not None, self.policy.root.compute
        for name, parameter in self.policy.model.named_parameters():
            if parameter.requires_grad or not is_lora:
                yield name, gather_whole(parameter, self.device, dtype=dtype)

    @named_for_others
    def state(self, folder: Path | None = None) -> ShareState:
        """This rank's share of weights and optimizer moments, not copied.

        Given the folder, a rank other than 0 begins to write it.
        """
        tensors: dict[str, Tensor] = {}
        starts: dict[str, tuple[int, int]] = {}
        for name, updater in self._updaters.items():
            tensors |= updater.state(name)
            for key, parameter in updater.parameters.items():
                place = rows_of(parameter)[0], parameter.shape[0]
                starts |= {f"{name}.{kind}.{key}": place for kind in ("weight", *MOMENTS)}
        state = ShareState(tensors, starts, rank=self.ranks.rank, size=self.ranks.size)
        if folder is not None and not self.ranks.is_first:
            self._writer.write(state, folder)
        return state

    def _reading(self, folder: Path) -> StateReader:
        """See TorchEngine; every rank reads its rows."""
        return StateReader(folder)

    def _gatherer(self) -> Whole | None:
        """See TorchEngine."""
        return _Gatherer(self.policy)


class _Gatherer:
    """Gathers parameters of a sharded model, for `merge.gather`."""

    def __init__(self, lm: CausalLM) -> None:
        self._device = lm.device
        self._owners: dict[int, list[tuple[nn.Module, str]]] = {}
        self._tied: dict[int, nn.Parameter] = {}
        """A weight with two names must be the same object under both."""
        for module in lm.model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                self._owners.setdefault(id(parameter), []).append((module, name))

    @contextmanager
    def __call__(self, parameters: list[Any]) -> Iterator[dict[int, Tensor]]:
        """The whole tensors by id; inside, modules hold them in place of the shards."""
        found = {id(p): self._whole(p) for p in parameters}
        for parameter in parameters:
            self._replace(parameter, found[id(parameter)])
        try:
            yield dict(found)
        finally:
            for parameter in parameters:
                self._replace(parameter, parameter)

    def _replace(self, parameter: Tensor, value: Any) -> None:
        """Put `value` into every module that `parameter` belongs to."""
        for module, name in self._owners.get(id(parameter), ()):
            module._parameters[name] = value

    def _whole(self, parameter: Tensor) -> Tensor:
        if id(parameter) in self._tied:
            return self._tied[id(parameter)]
        whole = gather_whole(parameter, self._device)
        if len(self._owners.get(id(parameter), ())) > 1:
            whole = self._tied[id(parameter)] = nn.Parameter(whole, requires_grad=False)
        return whole
