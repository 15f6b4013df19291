"""Memory of one model's update at each moment that may be its peak: head, layers, embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rlcli.plan import heap, passes
from rlcli.plan.shapes import ModelShape
from rlcli.plan.states import FLOAT, HALF, Numerics
from rlcli.plan.workload import Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Bytes in use at one moment, besides the states of all models."""

    activations: float = 0.0
    logits: float = 0.0
    rollout: float = 0.0
    missing: float = 0.0
    """Bytes of the states that do not exist yet: gradients."""
    unused: float = 0.0
    """Bytes that are freed but still resident: see heap.py."""

    @property
    def total(self) -> float:
        """Bytes besides the states."""
        return self.activations + self.logits + self.rollout + self.unused - self.missing


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """A micro-batch of one model. numerics: of this model (a critic has no adapters).

    gradients: bytes. several: whether the mini-batch has several micro-batches, so that gradients
    exist from the start. head_copies: copies of a chunk of logits; 0 without an LM head.
    """

    shape: ModelShape
    rows: Rows
    numerics: Numerics
    gradients: float
    several: bool
    checkpointed: bool
    head_copies: int

    def moments(self, *, is_cpu: bool) -> list[Moment]:
        """Every moment at which memory may peak."""
        moments = [*self._head(), *self._layers()]
        if not is_cpu:
            return moments
        left = self.left_in_heap()
        share = heap.small_share(self.shape, self.rows, self.numerics)
        return [
            replace(m, unused=max(self._holes(), left - share * m.activations)) for m in moments
        ]

    def left_in_heap(self) -> float:
        """Bytes besides the states that glibc holds after the update, on the CPU."""
        share = heap.small_share(self.shape, self.rows, self.numerics)
        return self._holes() + share * (self._kept() + self._inside())

    def _holes(self) -> float:
        return heap.unused_bytes(
            self.shape, self.rows, self.numerics, kept=self._kept(), several=self.several
        )

    @property
    def _missing(self) -> float:
        return 0.0 if self.several else self.gradients

    @property
    def _is_tied(self) -> bool:
        return self.shape.tied and self.head_copies > 0

    def _kept(self) -> float:
        """Bytes that the forward pass keeps for the backward pass."""
        shape, numerics = self.shape, self.numerics
        kept = passes.saved_bytes(shape, self.rows, numerics, checkpointed=self.checkpointed)
        casts = passes.cast_bytes(shape, numerics)
        if casts and not self.head_copies:
            casts -= HALF * (shape.embedding if shape.tied else shape.head)
        return kept + casts + passes.mask_elements(self.rows)

    def _inside(self) -> float:
        """Bytes that the backward pass of one layer adds."""
        inside = 3 * self.numerics.width * self.shape.mlp_width * self.rows.tokens
        if self.checkpointed:
            inside += passes.layer_bytes(self.shape, self.rows, self.numerics)
        return inside

    def _head(self) -> list[Moment]:
        """LM head, forward and backward. Recomputing a chunk takes its full memory again."""
        if not self.head_copies:
            return []
        shape, kept, missing = self.shape, self._kept(), self._missing
        chunk = passes.chunk_bytes(shape, self.rows)
        is_chunked = self.rows.response_tokens > passes.chunk_tokens(shape)
        width = FLOAT * (2 if is_chunked else 1) + HALF * self.numerics.half
        gradient = 0 if self.numerics.is_lora else width * shape.embedding
        backward = self.head_copies if is_chunked else passes.BACKWARD_COPIES
        return [
            Moment(activations=kept, logits=self.head_copies * chunk, missing=missing),
            Moment(activations=kept + gradient, logits=backward * chunk, missing=missing),
        ]

    def _layers(self) -> list[Moment]:
        """The backward pass at the last layer, and at the embedding."""
        now = self._kept() + self._inside()
        if self.numerics.is_lora:
            return [Moment(activations=now, missing=self._missing)]
        gradient = FLOAT * self.shape.embedding
        # the head's gradient waits for that of the embedding it is tied to
        waits = self.head_copies > 0 and (self._is_tied or not self.several)
        dense = gradient * (2 if self._is_tied and self.several else 1)
        return [
            Moment(activations=now + gradient * waits, missing=self._missing),
            Moment(activations=dense),
        ]


def left_in_heap(updates: Sequence[Update]) -> float:
    """Bytes that glibc still holds in the other phases of a step after its updates."""
    return heap.RETAINED_SHARE * max(update.left_in_heap() for update in updates)
