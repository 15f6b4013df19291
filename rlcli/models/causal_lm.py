"""Load a causal language model and set it up for packed batches if those are exact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from rlcli.errors import ModelError
from rlcli.models.forward import CausalLM
from rlcli.models.gated_mlp import disable_recompute, enable_recompute
from rlcli.models.load_check import check_model, first_line, why_not_with
from rlcli.models.loading import load_pretrained
from rlcli.models.onednn_linear import speed_up_linears
from rlcli.models.packed_attention import ATTENTION

CONFIG_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    AssertionError,
    StrictDataclassError,
)
"""Errors that transformers raises for an invalid config.json."""

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


def load_causal_lm(
    path: str,
    *,
    dtype: torch.dtype,
    device: torch.device,
    trust_remote_code: bool = False,
    needs_head: bool = True,
    samples: bool = True,
) -> CausalLM:
    """Load a model in `dtype`, and check it by `prepare`.

    Raises: ModelError as `load_unchecked` and `prepare`.
    """
    lm = load_unchecked(
        path, dtype=dtype, trust_remote_code=trust_remote_code, needs_head=needs_head
    )
    model: Any = lm.model
    model.to(device)
    return prepare(model, source_dtype=lm.source_dtype, samples=samples)


def load_unchecked(
    path: str, *, dtype: torch.dtype, trust_remote_code: bool = False, needs_head: bool = True
) -> CausalLM:
    """Load a model in `dtype` into host memory, without setup and checks.

    Raises: ModelError if `path` holds no causal language model, or weights are missing (without
    `needs_head` the LM head may be missing).
    """
    config = read_model_config(path, trust_remote_code=trust_remote_code)
    model = load_pretrained(
        path, config, trust_remote_code=trust_remote_code, needs_head=needs_head, dtype=dtype
    )
    return CausalLM(model=model, packed=False, source_dtype=config.dtype or dtype)


def prepare(
    model: PreTrainedModel, *, source_dtype: torch.dtype = torch.float32, samples: bool = True
) -> CausalLM:
    """Set the model up for packed batches, or for padded ones with a note on the reason.

    samples: whether the built-in sampler uses these weights.
    Raises: ModelError if sampler and trainer would differ; see `check_model`.
    """
    set_up_layers(model, model.device)
    lm = CausalLM(model=model, packed=False, source_dtype=source_dtype)
    check_passes(lm, samples=samples)
    return lm


def set_up_layers(model: PreTrainedModel, device: torch.device) -> None:
    """Turn dropout off and use the faster layers for `device`, where the model will run."""
    avoid_cudnn_attention(device)
    _silence_dropout(model)
    if device.type == "cpu":
        speed_up_linears(model)
    enable_recompute(model)


def check_passes(lm: CausalLM, *, samples: bool = True) -> None:
    """Choose packed or padded batches for `lm`, in place. Raises: ModelError as `prepare`."""
    plain = lm.model.config._attn_implementation or "eager"
    check_model(lm, samples=samples)
    if lm.packed and lm.device.type == "cuda":
        _attend_in_one_kernel(lm, plain)


def avoid_cudnn_attention(device: torch.device) -> None:
    """Exclude cuDNN from torch's attention kernels on CUDA."""
    if device.type == "cuda":
        # torch prefers cuDNN on sm90 and sm100, but cuDNN builds a plan for each key length, that
        # is, at every token of a response
        torch.backends.cuda.enable_cudnn_sdp(False)


def _attend_in_one_kernel(lm: CausalLM, plain: str) -> None:
    """Use FlexAttention if it gives the same log-probs; otherwise add a note with the reason."""
    from rlcli.models.flex_attention import (  # only CUDA needs the compiler
        FLEX_ATTENTION,
        why_not_flex,
    )

    reason = None
    for dtype in dict.fromkeys((torch.bfloat16, lm.model.dtype)):
        reason = reason or why_not_flex(lm.model.config, device=lm.device, dtype=dtype)
    if reason is None:
        lm.model.set_attn_implementation(plain)  # the probe's plain pass has no layout
        try:
            reason = why_not_with(lm, FLEX_ATTENTION)
        except Exception as error:  # the compiler raises many types
            reason = first_line(error)
    lm.model.set_attn_implementation(ATTENTION if reason else FLEX_ATTENTION)
    if reason:
        name = type(lm.model).__name__
        lm.notes.append(f"{name} attends in padded buckets (slower): {reason}")


def enable_gradient_checkpointing(model: PreTrainedModel) -> None:
    """Recompute activations in the backward pass."""
    disable_recompute(model)
    enable = getattr(model, "activation_checkpointing_enable", None)
    if enable is None:  # transformers before 5.20
        enable = model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _silence_dropout(model: nn.Module) -> None:
    """Turn off dropout inside the base model: the update must use the policy that sampled."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def load_tokenizer(path: str, *, trust_remote_code: bool = False) -> Any:
    """Load a model directory's tokenizer. Raises: ModelError if there is none."""
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except CONFIG_ERRORS as error:
        raise ModelError(
            f"model {path} has no tokenizer that loads: {first_line(error)}\n"
            "Put tokenizer.json and tokenizer_config.json beside config.json."
        ) from error


def eos_token_ids(path: str, tokenizer: Any, model_config: Any) -> tuple[int, ...]:
    """All token ids that end a response, from generation config, model and tokenizer.

    Raises: ModelError if there is none, or generation_config.json cannot be read.
    """
    eos_ids: set[int] = set()
    file = Path(path) / "generation_config.json"
    sources = [getattr(model_config, "eos_token_id", None), tokenizer.eos_token_id]
    if file.is_file():
        sources.append(_written_eos(file))
    for ids in sources:
        eos_ids.update([ids] if isinstance(ids, int) else ids or [])
    if not eos_ids:
        raise ModelError(
            f"model {path} has no end-of-sequence token: config.json and generation_config.json "
            "have no eos_token_id, tokenizer_config.json has no eos_token.\n"
            f"Set eos_token_id in {file} to the id of the token that ends a response."
        )
    return tuple(sorted(eos_ids))


def _written_eos(file: Path) -> int | list[int] | None:
    """The eos_token_id of a generation_config.json."""
    try:
        ids = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{file} is not valid JSON: {error}") from error
    for id in ids if isinstance(ids, list) else [ids]:
        if id is not None and not isinstance(id, int):
            raise ModelError(
                f"{file} has eos_token_id {id!r}; expected a number, or a list of numbers."
            )
    return ids


def read_model_config(path: str, *, trust_remote_code: bool = False) -> Any:
    """Read a model's transformers config, without weights. Raises: ModelError."""
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except CONFIG_ERRORS as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"model {path} comes with code of its own, and its custom code is not run by "
                "itself.\nRead it, then add --trust_remote_code."
            ) from error
        lines = str(error).splitlines() or [type(error).__name__]
        # a validation error names the field in its first line and the reason in its second
        reason = " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])
        raise ModelError(f"model {path} cannot be read: {reason}") from error
