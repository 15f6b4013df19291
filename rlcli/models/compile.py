"""torch.compile for the layers of a trained model: fewer memory passes between matmuls.

The children of each decoder layer are compiled, so that gradient checkpointing still wraps them.
Lengths are symbolic, so that ragged batches do not recompile. Attention, which reads a layout, is
not compiled.
"""

from __future__ import annotations

import os
import shutil
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rlcli.errors import ConfigError
from rlcli.models.flex_attention import allow_variants
from rlcli.models.forward import find_decoder
from rlcli.models.gated_mlp import disable_recompute
from rlcli.models.onednn_linear import OneDnnLinear
from rlcli.models.packed_attention import ATTENTION


def check_compiler(device: torch.device, where: str) -> None:
    """Raises: ConfigError if torch.compile has no compiler for `device`. where: the setting."""
    if device.type == "mps":
        raise ConfigError(
            f"{where} is for cuda and cpu, and this run computes on mps.\nUse model.compile=false."
        )
    if device.type == "cuda" and find_spec("triton") is None:
        raise ConfigError(
            f"{where} needs the package triton on cuda, which this Python lacks.\n"
            "Install the torch build that brings it, or use model.compile=false."
        )
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ConfigError(
            f"{where} needs a C++ compiler, and {compiler} is not on this machine.\n"
            "Install g++ or name one in CXX, or use model.compile=false."
        )


def compile_layers(model: PreTrainedModel) -> None:
    """Compile the parts of the decoder layers in place, at their first use in training."""
    _exclude_from_compilation()
    disable_recompute(model)  # the compiler already decides what to recompute
    decoder: Any = find_decoder(model)
    for layer in decoder.layers:
        for child in layer.children():
            _compile(child)


@cache
def _exclude_from_compilation() -> None:
    """Exclude code that reads layouts, and matmuls that cannot be compiled, from compilation."""
    allow_variants()
    for name in ALL_ATTENTION_FUNCTIONS.valid_keys():
        if name.startswith(ATTENTION):
            AttentionInterface.register(name, torch.compiler.disable(ALL_ATTENTION_FUNCTIONS[name]))
    forward: Any = torch.compiler.disable(OneDnnLinear.forward)
    OneDnnLinear.forward = forward


def _compile(module: nn.Module) -> None:
    module.compile(dynamic=True)
    compiled: Any = module._compiled_call_impl
    plain = module._call_impl

    def call(*inputs: Any, **keywords: Any) -> Any:
        # sampling steps have few tokens: entering compiled code costs more than it saves
        return (plain if torch.is_inference_mode_enabled() else compiled)(*inputs, **keywords)

    module._compiled_call_impl = call
