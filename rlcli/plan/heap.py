"""Freed blocks that glibc keeps on the CPU, which count as resident memory.

Blocks of 32 MiB and more go back to the system at once. Smaller ones stay, and because torch asks
for aligned blocks they rarely fit the next tensor of the same size. The factors are fitted to
bench/plan.py (glibc 2.36). The CUDA allocator reuses its blocks, so this is for the CPU only.
"""

from __future__ import annotations

from rlcli.plan.shapes import ModelShape
from rlcli.plan.states import FLOAT, Numerics
from rlcli.plan.workload import Rows

MMAP_THRESHOLD = 32 * 2**20
"""Blocks of at least this many bytes go back to the system (largest M_MMAP_THRESHOLD)."""
FRAGMENTATION = 0.15
"""Share of the activations: gaps that temporary tensors leave between kept ones."""
GRADIENT_FRAGMENTATION = 0.7
"""Share of the gradients: they lie among the previous micro-batch's activations."""
ADAPTER_FRAGMENTATION = 2.2
"""Share of the outputs of layers with an adapter: the sum of both halves is a new tensor."""

RETAINED_SHARE = 0.6
"""Share of an update's freed heap that is still held in the phases before the next update."""


def small_share(shape: ModelShape, rows: Rows, numerics: Numerics) -> float:
    """Share of a layer's activations in blocks that glibc keeps."""
    wide = numerics.width * shape.mlp_width
    if FLOAT * shape.hidden * rows.tokens >= MMAP_THRESHOLD:
        return 0.0
    if wide * rows.tokens < MMAP_THRESHOLD:
        return 1.0
    narrow = FLOAT * (6 * shape.hidden + 4 * shape.query_width)
    return narrow / (narrow + 4 * wide)


def small_gradients(shape: ModelShape, numerics: Numerics) -> float:
    """Bytes of the layers' gradients in blocks that glibc keeps."""
    if numerics.is_lora or FLOAT * shape.hidden * shape.intermediate >= MMAP_THRESHOLD:
        return 0.0
    return FLOAT * shape.layers * shape.layer_parameters()


def unused_bytes(
    shape: ModelShape, rows: Rows, numerics: Numerics, *, kept: float, several: bool
) -> float:
    """Bytes between blocks in use while `kept` bytes of activations exist.

    several: whether a mini-batch has more than one micro-batch.
    """
    unused = FRAGMENTATION * kept * small_share(shape, rows, numerics)
    if several:
        unused += GRADIENT_FRAGMENTATION * small_gradients(shape, numerics)
    if numerics.is_lora:
        blocks = [numerics.width * rows.tokens * output for _, output in shape.matrices().values()]
        small = sum(block for block in blocks if block < MMAP_THRESHOLD)
        unused += ADAPTER_FRAGMENTATION * shape.layers * small
    return unused
