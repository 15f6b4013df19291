"""Low-rank adapters: the policy is the model with the adapter on, the reference with it off."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from rlcli.config.schema import LoraConfig
from rlcli.engines.check_saved import empty_model
from rlcli.errors import ConfigError
from rlcli.models.forward import CausalLM
from rlcli.models.loading import other_layers

MAX_NAMES = 20


def adapt(policy: CausalLM, config: LoraConfig) -> PeftModel | None:
    """`policy` with adapters put into its model, and a note on experts that none trains.

    None if lora.rank is 0. Raises: ConfigError as `add_lora`.
    """
    if not config.rank:
        return None
    peft_model = add_lora(policy.model, config)
    if note := untrained_experts(policy.model):
        policy.notes.append(note)
    return peft_model


def add_lora(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """The model with adapters put into its layers, in place; everything else is frozen.

    A model on the meta device will do to see whether the settings fit.

    Raises: ConfigError when lora.targets names no module of this model, or one that cannot have
    an adapter; or when fused experts meet lora.dropout.
    """
    odd = [name for name, module in model.named_modules() if _is_odd_linear(module)]
    targets = config.targets
    settings = PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft scales by alpha / r: floats work
        lora_dropout=config.dropout,
        target_modules=targets,
        exclude_modules=[*odd, *other_layers(model)] or None,
        task_type="CAUSAL_LM",
    )
    names = _module_names(model, odd)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*")
            # peft 0.21.2 asks transformers 5.23 by a deprecated name
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
            # and sets patterns for experts where others are targeted
            warnings.filterwarnings("ignore", message=".*_pattern.*")
            adapted: Any = get_peft_model(model, settings)
    except ValueError as error:
        if config.dropout and "lora_dropout" in str(error):
            raise ConfigError(
                f"lora.dropout={config.dropout:g} does not work with adapters on fused experts, "
                "which this model has. Set lora.dropout=0."
            ) from error
        raise _no_module(_shown(targets), names) from error
    _check_every_target(adapted, targets, names)
    return adapted


@contextmanager
def adapters_with_values() -> Iterator[None]:
    """Inside, adapters on a model on the meta device get memory and their initial values.

    peft (0.21.2) moves an adapter to the device of its layer, and so drops the values it drew.
    """
    module_class: Any = nn.Module
    plain = module_class.to

    def to(module: nn.Module, *args: Any, **more: Any) -> nn.Module:
        return module if args and args[0] == torch.device("meta") else plain(module, *args, **more)

    module_class.to = to
    try:
        yield
    finally:
        module_class.to = plain


def check_lora(model_config: Any, config: LoraConfig, *, trust_remote_code: bool) -> None:
    """Raises: as `add_lora`, from the model's configuration alone."""
    try:
        model = empty_model(model_config, trust_remote_code=trust_remote_code)
    except Exception:
        return  # a class that cannot be built without memory is checked when it is loaded
    with torch.device("meta"):
        add_lora(model, config)


def untrained_experts(model: nn.Module) -> str | None:
    """A note on the experts that no adapter trains; None where all are trained, or there are none.

    A fused weight of all experts has three dimensions; peft knows it in some families only.
    """
    total = left = 0
    example = ""
    adapted = {
        id(layer.get_base_layer()._parameters.get(name))
        for layer in model.modules()
        if isinstance(layer, LoraLayer) and (name := getattr(layer, "parameter_name", "weight"))
    }
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            continue
        size = getattr(parameter, "ds_numel", parameter.numel())
        shape = getattr(parameter, "ds_shape", parameter.shape)
        total += size
        is_expert = "experts" in name and len(shape) > 2
        if is_expert and id(parameter) not in adapted:
            left += size
            example = example or name
    if not left:
        return None
    return (
        f"LoRA leaves the experts untrained: {example} and its like have no adapter "
        f"({left / total:.0%} of the model's weights)"
    )


def _check_every_target(model: nn.Module, targets: str | list[str], names: list[str]) -> None:
    """Raises: ConfigError for a name in the list that got no adapter; peft passes over it."""
    changed = [
        path.replace(".base_layer", "") + "." + getattr(layer, "parameter_name", "weight")
        for path, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    ]
    for target in targets if isinstance(targets, list) else ():
        if not any(f".{target}." in f".{name}." for name in changed):
            raise _no_module(target, names)


def _no_module(target: str, names: list[str]) -> ConfigError:
    return ConfigError(
        f"lora.targets: {target} names no module of this model that can have an adapter.\n"
        f"Its modules: {', '.join(names[:MAX_NAMES])}. Or use lora.targets=all-linear."
    )


def _is_odd_linear(module: nn.Module) -> bool:
    """Whether a subclass of Linear computes something else, as the routers of some MoE models do.

    peft takes them for linear layers, and fails on a router's tuple in the first forward pass.
    """
    if type(module) is nn.Linear or not isinstance(module, nn.Linear):
        return False
    weight = module.weight
    x = torch.zeros(2, module.in_features, dtype=weight.dtype, device=weight.device)
    try:
        with torch.no_grad():
            out: Any = module(x)
    except Exception:
        return True  # it takes no rows of in_features
    return not isinstance(out, torch.Tensor) or out.shape != (2, module.out_features)


def _module_names(model: nn.Module, odd: list[str]) -> list[str]:
    """Last names of the modules with a matrix of weights, those that are `odd` left out."""
    last = {
        path.rsplit(".", 1)[-1]
        for path, module in model.named_modules()
        if path not in odd and any(p.dim() == 2 for p in module.parameters(recurse=False))
    }
    return sorted(name for name in last if not name.isdigit())


def _shown(targets: str | list[str]) -> str:
    return targets if isinstance(targets, str) else f"[{','.join(targets)}]"
