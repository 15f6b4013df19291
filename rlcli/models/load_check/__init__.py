"""Check at load that sampler, trainer and the model's own forward give the same distributions.

It uses no collectives, so every rank can check its own copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlcli.errors import ModelError
from rlcli.models.forward import CausalLM, head_is_all
from rlcli.models.load_check.finite import find_non_finite as find_non_finite
from rlcli.models.load_check.finite import first_non_finite_output, refuse_non_finite
from rlcli.models.load_check.noise import silence_noise, train_mode
from rlcli.models.load_check.probe import Probe, gap_between, num_token_ids
from rlcli.models.packed_attention import ATTENTION, PackingUnsupportedError

LEAST_GATE = {torch.float32: 1e-5, torch.bfloat16: 2**-4}
"""Difference in probability that always passes as rounding."""
FLOOR_TIMES = 8
"""Multiple of the gap between two padded passes of different shapes that passes as rounding."""
MOST_TIMES = 100
"""If the model's own two passes differ by this many LEAST_GATE, it is not rounding."""
SINGLE_THREAD_PARAMETERS = 20_000_000
"""Below this, synchronizing threads takes more time than they save."""
FOREIGN_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    AssertionError,
    ImportError,
    PackingUnsupportedError,
)
"""Errors that a model's own code raises when it cannot compute a batch."""


@torch.no_grad()
def check_model(lm: CausalLM, *, samples: bool = True) -> None:
    """Set `lm.packed` and turn off train-mode noise; adds a note on each to `lm.notes`.

    samples: whether the built-in sampler uses these weights (not those of a critic).
    Raises: ModelError if trainer and sampler differ, or a weight is not finite.
    """
    if lm.root is None:  # shards are checked while loading
        refuse_non_finite(lm.model, type(lm.model).__name__)
    _check_shapes(lm.model)
    with _own_mode_and_seed(lm.model):
        _choose_passes(lm, samples=samples)


def _choose_passes(lm: CausalLM, *, samples: bool) -> None:
    model, probe, name = lm.model, Probe(lm), type(lm.model).__name__
    plain = model.config._attn_implementation or "eager"
    own_PV, gate = _own_distributions(probe)
    if note := silence_noise(probe, own_PV, gate):
        lm.notes.append(note)
    try:
        lm.head_is_all = head_is_all(lm)
    except FOREIGN_ERRORS as error:
        raise _cannot_run(model, error) from error
    lm.packed = True
    try:
        model.set_attn_implementation(ATTENTION)
        reason = _why_not_packed(probe, own_PV, gate, samples=samples)
    except torch.OutOfMemoryError:
        raise
    except FOREIGN_ERRORS as error:
        reason = first_line(error)
    if reason is None:
        return
    lm.packed = False
    model.set_attn_implementation(plain)
    lm.notes.append(f"{name} runs with padded batches (slower): {reason}")
    try:
        problem = _difference(probe, own_PV, gate, samples=samples)
    except torch.OutOfMemoryError:
        raise
    except FOREIGN_ERRORS as error:
        raise _cannot_run(model, error) from error
    if problem is not None:
        raise ModelError(
            f"{name} cannot be trained: {problem}.\n"
            "The policy that learns would not be the one that samples. Choose another model."
        )


@torch.no_grad()
def why_not_with(lm: CausalLM, attention: str) -> str | None:
    """Reason not to use another attention function with flat tokens; None if it is exact.

    Exact means that it gives the model's own distributions. The model must have its plain
    attention function before the call, and has `attention` after it.
    """
    with _own_mode_and_seed(lm.model):
        probe = Probe(lm)
        own_PV, gate = _own_distributions(probe)
        lm.model.set_attn_implementation(attention)
        return _difference(probe, own_PV, gate, samples=True)


def _check_shapes(model: PreTrainedModel) -> None:
    """Raises: ModelError if the model can sample a token that it has no embedding for."""
    head: Any = model.get_output_embeddings()
    rows, width = num_token_ids(model), getattr(head, "out_features", 0)
    config = model.config.get_text_config()
    if rows < width and rows < getattr(config, "vocab_size", width):
        raise ModelError(
            f"{type(model).__name__} has a head for {width} tokens and an embedding for {rows}: "
            "it could sample a token that it cannot read.\nCopy all of the model's weights."
        )


def _own_distributions(probe: Probe) -> tuple[Tensor, float]:
    """(distributions of the model's own forward [P, V], gap that passes as rounding)."""
    model = probe.lm.model
    try:
        own_PV, alone_PV = probe.plain(), probe.alone()
    except torch.OutOfMemoryError:
        raise
    except FOREIGN_ERRORS as error:
        raise _cannot_run(model, error) from error
    if not (own_PV.isfinite().all() and alone_PV.isfinite().all()):
        raise ModelError(
            f"{type(model).__name__} computes numbers that are not finite, first in "
            f"{first_non_finite_output(probe)}; its weights are finite.\n"
            "Use model.dtype=float32, or copy the model again."
        )
    least = LEAST_GATE.get(model.dtype, LEAST_GATE[torch.bfloat16])
    floor = gap_between(own_PV[-len(alone_PV) :], alone_PV)
    if not floor <= least * MOST_TIMES:
        raise ModelError(
            f"{type(model).__name__} cannot be trained in batches: padding behind a row moves its "
            f"probabilities by {floor:.2g}.\nChoose another model."
        )
    return own_PV, max(least, FLOOR_TIMES * floor)


def _difference(probe: Probe, own_PV: Tensor, gate: float, *, samples: bool) -> str | None:
    """The difference of trainer and sampler from the model's own distributions; None if none."""
    way = "packed" if probe.lm.packed else "padded"
    with train_mode(probe.lm.model):
        trained_PV = probe.trained()
    if not (gap := gap_between(trained_PV, own_PV)) <= gate:
        return f"{way} training and its own forward differ by {gap:.2g} in probability"
    if samples and not (gap := gap_between(probe.sampled(), trained_PV)) <= gate:
        return (
            f"{way} sampling (prompts of different lengths, token by token) and training differ "
            f"by {gap:.2g} in probability"
        )
    return None


def _why_not_packed(probe: Probe, own_PV: Tensor, gate: float, *, samples: bool) -> str | None:
    """Reason not to use packed batches; None if they give the model's own distributions."""
    config = probe.lm.model.config.get_text_config()
    kinds = list(getattr(config, "layer_types", None) or [])
    # the probe is too short to show that packed attention ignores chunks and windows
    if others := sorted({*kinds} - {"full_attention", "sliding_attention"}):
        return f"layers of type {', '.join(others)}"
    if problem := _difference(probe, own_PV, gate, samples=samples):
        return problem
    without = [layer for layer, window in probe.windows.items() if window is None]
    if slides := [i for i in without if i < len(kinds) and kinds[i] == "sliding_attention"]:
        return f"layer {slides[0]} does not pass its attention window on"
    if not kinds and len(without) == len(probe.windows) and (name := _window_setting(config)):
        return f"its attention does not pass {name} on"
    return None


def _window_setting(config: Any) -> str | None:
    """The setting that limits the attention window."""
    names = (name for name in config.to_dict() if name.endswith(("window", "window_size")))
    return next((name for name in names if getattr(config, name)), None)


def _cannot_run(model: PreTrainedModel, error: BaseException) -> ModelError:
    return ModelError(
        f"{type(model).__name__} cannot compute a few tokens: {first_line(error)}\n"
        "Choose another model, or another version of transformers."
    )


def first_line(error: BaseException) -> str:
    """First line of an error's message, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def _own_mode_and_seed(model: PreTrainedModel) -> Iterator[None]:
    """Eval mode inside; restores the model's mode and the random state afterwards."""
    devices = [model.device] if model.device.type == "cuda" else []
    was_training, threads = model.training, torch.get_num_threads()
    if model.device.type == "cpu" and model.num_parameters() < SINGLE_THREAD_PARAMETERS:
        torch.set_num_threads(1)
    with torch.random.fork_rng(devices):
        torch.manual_seed(0)
        model.eval()
        try:
            yield
        finally:
            model.train(was_training)
            torch.set_num_threads(threads)
