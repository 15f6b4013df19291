"""A vLLM engine in this process."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from rlcli.rollout.vllm.versions import LORA_RANKS, own_no_groups

RECEIVER = "rlcli.rollout.vllm.worker.Receiver"
BLOCK = 128
"""Maximum tokens in a KV cache block."""
SMALLEST_CACHE = 2**26
BATCHED_TOKENS = 2048
"""Prompt tokens computed at once on a CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmSettings:
    """Settings to start an engine.

    max_tokens: of prompt and response together. temperature: of training, whose log-probs count.
    cache_bytes: keys and values on a CPU. num_ranks: processes of the run.
    """

    model_dir: Path
    dtype: Literal["float32", "bfloat16"]
    device: str
    max_tokens: int
    max_num_seqs: int
    temperature: float
    memory_fraction: float = 0.5
    cache_bytes: int = SMALLEST_CACHE
    tensor_parallel: int = 1
    num_ranks: int = 1
    lora_rank: int = 0
    trust_remote_code: bool = False
    seed: int = 0


@cache
def load_vllm() -> ModuleType:
    """Import vllm: quiet, in this process, and without changing its thread affinity."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "CRITICAL")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import vllm

    return vllm


def start_engine(settings: VllmSettings) -> Any:
    """Start a vllm.LLMEngine. Its weights are random until loaded; with LoRA, the model's."""
    vllm = load_vllm()
    args: dict[str, Any] = {
        "model": str(settings.model_dir),
        "skip_tokenizer_init": True,
        "trust_remote_code": settings.trust_remote_code,
        "dtype": settings.dtype,
        "seed": settings.seed,
        "max_model_len": settings.max_tokens,
        "max_num_seqs": settings.max_num_seqs,
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        "logprobs_mode": logprobs_mode(settings),
        "worker_extension_cls": RECEIVER,
        "load_format": "auto" if settings.lora_rank else "dummy",
        "tensor_parallel_size": settings.tensor_parallel,
    }
    if settings.num_ranks > 1:
        args["distributed_executor_backend"] = "external_launcher"
    if settings.lora_rank:
        room = room_for(settings.lora_rank)
        args |= {"enable_lora": True, "max_lora_rank": room, "max_loras": 1}
    if settings.device == "cpu":
        # chunked prefill would rewind the request's random generator, which a CPU generator cannot
        args |= {
            "enforce_eager": True,
            "kv_cache_memory_bytes": settings.cache_bytes,
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(BATCHED_TOKENS, settings.max_tokens),
        }
    else:
        args |= {
            "gpu_memory_utilization": settings.memory_fraction,
            "enable_sleep_mode": True,
        }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = vllm.LLMEngine.from_engine_args(vllm.EngineArgs(**args))
    own_no_groups(engine)
    return engine


def room_for(lora_rank: int) -> int:
    """The smallest adapter rank supported by vLLM that is at least `lora_rank`."""
    return min(rank for rank in LORA_RANKS if rank >= lora_rank)


def logprobs_mode(settings: VllmSettings) -> str:
    """vLLM's log-prob mode that gives the log-probs of logits / temperature.

    At temperature 1 these are the raw ones, before top-p and top-k. Others it has only after them:
    the two are refused together.
    """
    return "raw_logprobs" if settings.temperature == 1.0 else "processed_logprobs"


def cache_bytes(model_config: Any, *, rows: int, tokens: int, bytes_per_number: int) -> int:
    """Bytes of KV cache for `rows` responses of full length."""
    text = model_config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    per_token = 2 * text.num_hidden_layers * heads * size * bytes_per_number
    blocks = -(-tokens // BLOCK) + 1
    return max(SMALLEST_CACHE, rows * blocks * BLOCK * per_token)
