"""Write LoRA weights for vLLM as a folder in peft's format."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from rlcli.errors import SamplerError

PARTS = (".lora_A.", ".lora_B.")
PREFIX, NAME = "base_model.model.", ".default."


def write_adapter(
    weights: Iterable[tuple[str, Tensor]], folder: Path, *, rank: int, alpha: float
) -> None:
    """Write the adapters among `weights`; the engine already has the other weights.

    Raises: SamplerError for adapters of embeddings, which vLLM does not support.
    """
    weights = list(weights)
    if others := [n for n, _ in weights if ".lora_" in n and not any(p in n for p in PARTS)]:
        raise SamplerError(f"vLLM takes adapters of linear layers only, not {others[0]}")
    tensors = {
        PREFIX + name.replace(NAME, "."): tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in weights
        if any(part in name for part in PARTS)
    }
    modules = sorted({name.rsplit(".lora_", 1)[0].rsplit(".", 1)[-1] for name in tensors})
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": modules,
        "bias": "none",
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
