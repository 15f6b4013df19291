"""Low-rank adapters: the policy is the model with the adapter on, the reference with it off."""

from __future__ import annotations

import warnings

from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel

from rlcli.config.schema import LoraConfig
from rlcli.errors import ConfigError


def add_lora(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """The model with adapters put into its layers, in place; everything else is frozen.

    Raises: ConfigError when lora.targets names no module of this model.
    """
    settings = PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft scales by alpha / r: floats work
        lora_dropout=config.dropout,
        target_modules=config.targets,
        task_type="CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*")
            # peft 0.21.2 asks transformers 5.23 by a deprecated name
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
            return get_peft_model(model, settings)  # type: ignore[return-value]
    except ValueError as error:
        names = sorted({name.rsplit(".", 1)[-1] for name, m in model.named_modules() if name})
        raise ConfigError(
            f"lora.targets={config.targets} fits no module of this model: {error}\n"
            f"Its modules: {', '.join(names[:20])}. Use lora.targets=all-linear."
        ) from error
