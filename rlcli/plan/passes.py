"""Bytes of one pass over a micro-batch: tensors kept for the backward pass, and temporary ones.

Taken from what torch saves for backward in the layers of Qwen2, Qwen3, Llama, Mistral, Gemma and
Phi 3 under packed attention; tests/plan compares it with a real model.
"""

from __future__ import annotations

from rlcli.plan.shapes import ModelShape
from rlcli.plan.states import FLOAT, HALF, Numerics
from rlcli.plan.workload import Rows

CHUNK_ELEMENTS = 2**26
"""Logits that the engine holds at once, per copy (engines/logprobs.py)."""
NO_GRAD_COPIES = 2
"""Copies of a chunk: logits and log-probs."""
SQUARES_COPIES = 4
"""The same, plus probabilities and their squares."""
ENTROPY_COPIES = 3
"""The same, plus the terms of the entropy."""
ENTROPY_GRAD_COPIES = 5
"""Backward: log-probs, the gradient, and three factors of it."""
BACKWARD_COPIES = 2
"""Backward, for a chunk that is not recomputed: log-probs and the gradient."""
INITIAL_COLUMNS = 64
"""Initial response columns in the sampler's KV cache (models/packed_attention.py)."""


def saved_bytes(
    shape: ModelShape, rows: Rows, numerics: Numerics, *, checkpointed: bool = False
) -> float:
    """Activations kept until the backward pass, without logits."""
    last_norm = 2 * FLOAT * shape.hidden * rows.tokens
    predicting = FLOAT * shape.hidden * rows.response_tokens
    if checkpointed:
        residual = HALF if numerics.half and numerics.is_lora else FLOAT
        return shape.layers * residual * shape.hidden * rows.tokens + last_norm + predicting
    return shape.layers * layer_bytes(shape, rows, numerics) + last_norm + predicting


def layer_bytes(shape: ModelShape, rows: Rows, numerics: Numerics) -> float:
    """Activations that one layer keeps until its backward pass."""
    width, tokens, hidden = numerics.width, rows.tokens, shape.hidden
    per_norm = FLOAT * (1 if numerics.is_lora else 2)  # a frozen scale needs no normalized input
    norms = per_norm * shape.norms * hidden
    if shape.qk_norm:
        norms += per_norm * (shape.query_width + shape.kv_width)
    # autocast casts a normalized input once for each matrix it goes into
    copies = (5 if shape.gated else 4) if numerics.half else 2
    inputs = width * (copies * hidden + shape.query_width)
    # gate and up; experts also keep the intermediate results (rlcli/models/gated_mlp.py)
    mlp = width * shape.mlp_width * (4 if shape.gated and shape.experts else 2)
    adapters = width * numerics.lora_rank * len(shape.matrices())
    return tokens * (norms + inputs + mlp + adapters) + _attention(shape, rows, numerics)


def _attention(shape: ModelShape, rows: Rows, numerics: Numerics) -> float:
    """Bytes of queries, outputs, keys and values in blocks, and of the mask as numbers."""
    width = (
        numerics.width if numerics.device == "cuda" else FLOAT
    )  # rlcli/models/packed_attention.py
    keys = shape.query_width if numerics.device == "cuda" else shape.kv_width
    seen = rows.rows * (rows.prompt_length + rows.response_length) + rows.prompt_tokens
    return (
        2 * width * shape.query_width * rows.tokens
        + 2 * width * keys * seen
        + width * mask_elements(rows)
        + FLOAT * shape.heads * rows.tokens
    )


def mask_elements(rows: Rows) -> int:
    """Elements of the attention masks of prompts and responses."""
    seen = rows.prompt_length + rows.response_length
    return rows.response_tokens * seen + rows.prompt_tokens * rows.prompt_length


def passing_bytes(shape: ModelShape, rows: Rows, numerics: Numerics) -> float:
    """Peak bytes inside one layer of a pass without gradients."""
    residual = rows.tokens * shape.hidden * (2 * FLOAT + numerics.width)
    mlp = 3 * shape.mlp_width * rows.tokens
    seen = rows.rows * (rows.prompt_length + rows.response_length)
    attention = 4 * shape.query_width * rows.tokens + 4 * shape.kv_width * seen
    return residual + numerics.width * max(mlp, attention) + mask_elements(rows)


def cast_bytes(shape: ModelShape, numerics: Numerics) -> float:
    """Half-precision copies of float32 weights, which autocast keeps during a pass."""
    if not numerics.half or numerics.is_lora or numerics.is_sharded:
        return 0.0
    return HALF * (shape.parameters - (0 if shape.tied else shape.embedding))


def chunk_bytes(shape: ModelShape, rows: Rows) -> float:
    """Bytes of one float32 copy of the logits held at once."""
    return FLOAT * shape.vocabulary * min(rows.response_tokens, chunk_tokens(shape))


def chunk_tokens(shape: ModelShape) -> int:
    """Response tokens whose logits are held at once."""
    return max(1, CHUNK_ELEMENTS // shape.vocabulary)


def kv_bytes_per_token(shape: ModelShape, *, width: int) -> int:
    """Bytes of the keys and values of one token in all layers."""
    return 2 * shape.layers * shape.kv_width * width


def native_kv_bytes(shape: ModelShape, rows: Rows, *, width: int) -> float:
    """Bytes of the native sampler's KV cache at its largest, and of the buffer being copied."""
    last = rows.prompt_length + rows.response_length
    columns = before = min(rows.prompt_length + INITIAL_COLUMNS, last)
    while columns < last - 1:  # the last token's keys are never needed
        before, columns = columns, min(last, columns * 3 // 2 + 1)
    per_column = rows.rows * kv_bytes_per_token(shape, width=width)
    moved = rows.rows * shape.kv_width * width * before if columns > before else 0
    return per_column * columns + moved
