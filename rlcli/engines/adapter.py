"""An adapter of any kind that peft can merge, and its base, saved as one model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import AutoConfig

from rlcli.engines.check_saved import adapter_problems, not_finite, quiet
from rlcli.engines.export import save_pretrained
from rlcli.errors import ModelError
from rlcli.models.causal_lm import CausalLM, load_tokenizer
from rlcli.models.load_check import first_line
from rlcli.models.loading import choose_class
from rlcli.models.weight_files import check_adapter_file, check_pointers


def merge_adapter(
    base: Path, adapter: Path, dest: Path, *, tokenizer: Path, trust_remote_code: bool
) -> None:
    """Write base + adapter to `dest` in the base's dtype; merged in float32, on the CPU.

    Raises: ModelError for an adapter that does not fit, or that peft cannot merge; OSError.
    """
    trust = trust_remote_code
    config = AutoConfig.from_pretrained(base, trust_remote_code=trust)
    check_adapter(base, adapter, trust_remote_code=trust)
    if found := next(not_finite(adapter), None):
        raise ModelError(
            f"adapter {adapter} has weights that are not finite: {found}.\n"
            "Copy or download the model again, or take an earlier checkpoint."
        )
    try:
        with quiet():
            model: Any = choose_class(config).from_pretrained(
                base, dtype=torch.float32, trust_remote_code=trust
            )
            settings = PeftConfig.from_pretrained(str(adapter))
            is_tied = not getattr(settings, "ensure_weight_tying", False) and _untie(model)
            merged: Any = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
            if is_tied:
                _tie_if_equal(merged)
    except (OSError, ModelError):
        raise
    except Exception as error:  # peft's errors have many types
        raise _cannot_merge(adapter, base, error) from error
    stored: Any = config.dtype or torch.float32
    whole = CausalLM(model=merged, packed=False, source_dtype=stored)
    words = load_tokenizer(str(tokenizer), trust_remote_code=trust)
    save_pretrained(whole, None, dest, words, merge_lora=False)


def check_adapter(base: Path, adapter: Path, *, trust_remote_code: bool) -> None:
    """Everything that can be asked of an adapter and its base without reading weights.

    Raises: ModelError for files that cannot be read, a quantised base, or weights of another model.
    """
    check_pointers(adapter)
    check_adapter_file(adapter)
    config = AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code)
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            f"adapter {adapter} has a quantised base ({base}), into which it cannot be merged "
            "without loss.\nSet base_model_name_or_path in its adapter_config.json to the base "
            "that is not quantised."
        )
    try:
        with quiet():
            found = next(adapter_problems(adapter, trust_remote_code, base=base), None)
    except Exception as error:
        raise _cannot_merge(adapter, base, error) from error
    if found:
        raise ModelError(f"adapter {adapter} does not fit its base {base}: {found}")


def _cannot_merge(adapter: Path, base: Path, error: Exception) -> ModelError:
    return ModelError(f"adapter {adapter} cannot be merged into {base}: {first_line(error)}")


def _untie(model: Any) -> bool:
    """Give a tied LM head a weight of its own; peft would merge into both. Whether it was tied."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is not embedding.weight:
        return False
    head.weight = nn.Parameter(head.weight.detach().clone())
    _set_tied(model, is_tied=False)
    return True


def _tie_if_equal(model: Any) -> None:
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if torch.equal(head.weight, embedding.weight):
        head.weight = embedding.weight
        _set_tied(model, is_tied=True)


def _set_tied(model: Any, *, is_tied: bool) -> None:
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        config.tie_word_embeddings = is_tied
