"""Build a language model from its folder: class, weights, and trainable parts."""

from __future__ import annotations

from typing import Any

from safetensors import SafetensorError
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    PreTrainedModel,
)

from rlcli.errors import ModelError

LOADING_ERRORS = (
    OSError,
    ValueError,
    LookupError,
    RuntimeError,
    ImportError,
    TypeError,
    AttributeError,
    AssertionError,
    SafetensorError,
)
"""Raised by transformers for files that do not fit the class, and for missing packages."""


def choose_class(config: Any) -> Any:
    """The auto class that loads all weights of a checkpoint.

    A checkpoint with an image or audio part is loaded with its own class even if transformers has
    a text-only class for it, so that exports are complete.

    Raises: ModelError if transformers has no class that generates text for this configuration.
    """
    kind = type(config)
    if has_other_modalities(config) and not config.is_encoder_decoder:
        if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            return AutoModelForImageTextToText
        if kind in MODEL_FOR_MULTIMODAL_LM_MAPPING:
            return AutoModelForMultimodalLM
    is_custom = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if (kind not in MODEL_FOR_CAUSAL_LM_MAPPING and not is_custom) or config.is_encoder_decoder:
        raise ModelError(
            f"a model of type {config.model_type} is not a language model that can be trained "
            "here.\nChoose a causal language model, or an image-text model with one inside."
        )
    return AutoModelForCausalLM


def has_other_modalities(config: Any) -> bool:
    """Whether the configuration has a part besides its text model, such as an image encoder."""
    return config.get_text_config() is not config


def load_pretrained(
    path: str,
    config: Any,
    *,
    trust_remote_code: bool,
    needs_head: bool = True,
    **placement: Any,
) -> PreTrainedModel:
    """Load a model with all its weights; parts not used for text are frozen.

    placement: dtype and device_map of from_pretrained.

    Raises: ModelError if a weight is missing or has another shape than config.json gives it
    (without `needs_head` the LM head may be missing).
    """
    auto_class = choose_class(config)
    try:
        loaded: Any = auto_class.from_pretrained(
            path,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported by name below
            **placement,
        )
    except LOADING_ERRORS as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{path} does not load as a language model: {first}") from error
    model, info = loaded
    _check_weights(path, info, needs_head=needs_head)
    if getattr(model, "is_quantized", False):
        _freeze_quantised(model)
    if has_other_modalities(config):
        freeze_other_parts(model)
    return model


def _freeze_quantised(model: PreTrainedModel) -> None:
    """Freeze quantised weights, on which only adapters can be trained."""
    model.requires_grad_(False)
    layers: list[Any] = [*model.modules()]
    for layer in layers:
        # bitsandbytes (0.50.2) packs 4-bit weights for inference on a CPU with AVX-512 BF16;
        # gradients cannot pass through packed weights
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def _check_weights(path: str, info: dict[str, Any], *, needs_head: bool) -> None:
    head = () if needs_head else ("lm_head",)
    missing = sorted(name for name in info["missing_keys"] if not name.startswith(head or "\0"))
    if missing == ["lm_head.weight"]:
        raise ModelError(
            f"{path} has no lm_head.weight, and its config.json says that head and embedding are "
            "not tied.\nSet tie_word_embeddings to true if they are, or copy the missing file."
        )
    if missing:
        raise ModelError(
            f"{path} lacks {len(missing)} of the model's weights, {missing[0]} among them.\n"
            "Copy all *.safetensors files; weights made up at random would train in silence."
        )
    for name, stored, built in sorted(info["mismatched_keys"]):
        if not name.startswith(head or "\0"):
            raise ModelError(
                f"{path}: the files have {name} as {list(stored)}, and config.json makes it "
                f"{list(built)}.\nTake config.json and weights from the same model."
            )


def build_empty(path: str, config: Any, *, trust_remote_code: bool, needs_head: bool = True) -> int:
    """Rows of the token embedding, from a build that reads only the headers of the weight files.

    Raises: as `load_pretrained`.
    """
    model = load_pretrained(
        path,
        config,
        trust_remote_code=trust_remote_code,
        needs_head=needs_head,
        device_map="meta",
    )
    embedding: Any = model.get_input_embeddings()
    return int(embedding.weight.shape[0])


def freeze_other_parts(model: PreTrainedModel) -> None:
    """Leave only the decoder, its embedding and its head trainable."""
    trained = {id(parameter) for part in text_parts(model) for parameter in part.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in trained:
            parameter.requires_grad_(False)


def text_parts(model: PreTrainedModel) -> list[nn.Module]:
    """The modules used for text: decoder, token embedding, LM head."""
    parts = (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())
    return [part for part in parts if isinstance(part, nn.Module)]


def other_layers(model: PreTrainedModel) -> list[str]:
    """Names of modules not used for text that an adapter could be put on."""
    if not has_other_modalities(model.config):
        return []
    inside = {id(module) for part in text_parts(model) for module in part.modules()}
    return [
        name
        for name, module in model.named_modules()
        if id(module) not in inside and not [*module.children()]
    ]
