"""What the loop asks of a training engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from rlcli.algos.algorithm import Algorithm
from rlcli.run_dir.checkpoint import EngineState
from rlcli.types import Advantages, AnnotatedBatch, Batch, StepRecord

Weights = Iterator[tuple[str, Tensor]]


class TrainEngine(Protocol):
    """Weights, their optimizer, and the passes over the rows that this rank holds."""

    def annotate(self, batch: Batch, algorithm: Algorithm) -> AnnotatedBatch:
        """The batch plus old log-probs, reference log-probs and values, as far as needed."""
        ...

    def update(
        self,
        batch: AnnotatedBatch,
        advantages: Advantages,
        algorithm: Algorithm,
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
