"""What the loop asks of a training engine, and what an engine asks of an algorithm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from rlcli.run_dir.checkpoint import EngineState
from rlcli.types import Advantages, AnnotatedBatch, Batch, Gather, StepRecord, TokenLoss

Weights = Iterator[tuple[str, Tensor]]


class PolicyObjective(Protocol):
    """The maths of a run as an engine sees it: per-token losses and how they are summed up."""

    @property
    def needs_reference(self) -> bool: ...
    @property
    def needs_sum_pi_squared(self) -> bool: ...
    @property
    def uses_sampler_logprobs(self) -> bool: ...
    @property
    def compares_sampler(self) -> bool: ...
    @property
    def has_entropy_bonus(self) -> bool: ...
    @property
    def needs_advantage(self) -> bool: ...
    @property
    def reads_old_logprobs(self) -> bool: ...

    def select(
        self,
        logprobs_BT: Tensor,
        batch: AnnotatedBatch,
        advantages: Advantages,
        *,
        draws_BT: Tensor,
        gather: Gather,
    ) -> Tensor | None:
        """Tokens [B, T] that the loss selects, once per mini-batch over all ranks; None if none.

        draws_BT: a random number in [0, 1) for each token.
        """
        ...

    @property
    def selects(self) -> bool:
        """Whether `select` must be called with the mini-batch's current log-probs."""
        ...

    def policy_loss(
        self,
        logprobs_BT: Tensor,
        entropy_BT: Tensor,
        batch: AnnotatedBatch,
        advantages: Advantages,
        selected_BT: Tensor | None,
    ) -> TokenLoss:
        """Per-token loss of the policy, entropy bonus and KL term included."""
        ...

    def value_loss(
        self, values_BT: Tensor, batch: AnnotatedBatch, advantages: Advantages, *, cliprange: float
    ) -> TokenLoss:
        """Per-token loss of the critic."""
        ...

    def count(self, mask_BT: Tensor) -> Tensor:
        """[2]: tokens and non-empty rows of a mask; summed over ranks, the denominators."""
        ...

    def aggregate(self, values_BT: Tensor, mask_BT: Tensor, counts: Tensor) -> Tensor:
        """One number from per-token values; micro-batches with the same counts add up."""
        ...


class TrainEngine(Protocol):
    """Weights, their optimizer, and the passes over the rows that this rank holds."""

    def annotate(self, batch: Batch, objective: PolicyObjective) -> AnnotatedBatch:
        """The batch plus old log-probs, reference log-probs and values, as far as needed."""
        ...

    def update(
        self,
        batch: AnnotatedBatch,
        advantages: Advantages,
        objective: PolicyObjective,
        *,
        step: int,
    ) -> StepRecord:
        """One step of learning: every epoch, mini-batch and micro-batch; metrics of it."""
        ...

    def weights(self) -> Weights:
        """(name, tensor) of the policy's parameters."""
        ...

    def all_reduce(self, values: Tensor, /) -> Tensor:
        """Sum over ranks."""
        ...

    def all_reduce_max(self, values: Tensor, /) -> Tensor:
        """Maximum over ranks."""
        ...

    def state(self, folder: Path | None = None) -> EngineState:
        """Everything needed to resume, not copied: training goes on with these tensors.

        folder: where the caller will save it; the other ranks write their shares there.
        """
        ...

    def load_state(self, folder: Path) -> None:
        """The state that was saved into `folder`, to the bit."""
        ...

    def save_model(self, folder: Path | None, tokenizer: Any, *, merge_lora: bool) -> None:
        """The policy in Hugging Face format. folder None: another rank writes it."""
        ...

    @property
    def device(self) -> torch.device:
        """Where tensors of the loop live."""
        ...
