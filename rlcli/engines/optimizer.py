"""AdamW, the course of the learning rate, and one guarded optimizer step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from rlcli.config.schema import TrainConfig
from rlcli.distributed.collectives import ALONE, Ranks

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's, beside its step count."""
NamedParameters = Iterable[tuple[str, nn.Parameter]]


def learning_rate_factor(config: TrainConfig, *, step: int, total_steps: int) -> float:
    """Share of the full learning rate at a 0-based step: linear warm-up, then the schedule."""
    warmup = config.lr_warmup_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, total_steps - warmup)
    if config.lr_schedule == "linear":
        return max(0.0, 1.0 - done)
    if config.lr_schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    return 1.0


class Updater:
    """Trainable parameters with their AdamW state and gradient clipping."""

    def __init__(
        self,
        parameters: NamedParameters,
        config: TrainConfig,
        *,
        lr: float,
        grad_clip: float,
        ranks: Ranks = ALONE,
    ) -> None:
        self.parameters = {name: p for name, p in parameters if p.requires_grad}
        self.lr, self.grad_clip, self.ranks = lr, grad_clip, ranks
        self.skipped_in_a_row = 0
        device = next(iter(self.parameters.values())).device
        self.adamw = AdamW(
            self.parameters.values(),
            lr=lr,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
            fused=device.type in ("cpu", "cuda"),
        )

    @property
    def has_stepped(self) -> bool:
        """Whether the weights have ever been changed, before a checkpoint too."""
        return bool(self.adamw.state)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        self.adamw.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a micro-batch's share of the loss."""
        loss.backward()

    def set_zero_grad(self) -> None:
        """A gradient of 0, which moves weights by momentum and decay alone."""
        for parameter in self.parameters.values():
            parameter.grad = torch.zeros_like(parameter)

    def step(self, factor: float) -> tuple[float, bool]:
        """(gradient norm before clipping, whether the step was taken).

        A norm that is not finite leaves weights and moments as they were.
        """
        norm = self._clip()
        if not bool(torch.isfinite(norm)):
            self.zero_grad()
            self.skipped_in_a_row += 1
            return float(norm), False
        for group in self.adamw.param_groups:
            group["lr"] = self.lr * factor
        self.adamw.step()
        self.skipped_in_a_row = 0
        return float(norm), True

    def _clip(self) -> Tensor:
        """The norm of the gradients of all ranks, which are summed and clipped."""
        self.ranks.sum_gradients(list(self.parameters.values()))
        return nn.utils.clip_grad_norm_(self.parameters.values(), self.grad_clip)

    def state(self, prefix: str) -> dict[str, Tensor]:
        """Weights and moments by name, as they are."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            tensors[f"{prefix}.weight.{name}"] = parameter.detach()
            for key, value in self.adamw.state.get(parameter, {}).items():
                tensors[f"{prefix}.{key}.{name}"] = value
        return tensors

    @torch.no_grad()
    def load_state(self, prefix: str, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave, to the bit. Raises: KeyError on a missing tensor."""
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[f"{prefix}.weight.{name}"])
            moments: dict[str, Tensor] = {}
            for key in ("step", *MOMENTS):
                value = tensors.get(f"{prefix}.{key}.{name}")
                if value is not None:
                    moments[key] = value.to(parameter.device, copy=True)
            if moments:
                self.adamw.state[parameter] = moments
