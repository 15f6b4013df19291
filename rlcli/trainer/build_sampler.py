"""The sampler of a planned run or evaluation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcli.errors import ConfigError, SamplerError
from rlcli.setup.checks.sampler import SERVER_MEMORY_FRACTION
from rlcli.terminal.i18n import translator
from rlcli.terminal.text import progress_line

if TYPE_CHECKING:
    import torch

    from rlcli.distributed.collectives import Ranks
    from rlcli.engines.torch_engine import TorchEngine
    from rlcli.models.causal_lm import CausalLM
    from rlcli.rollout.base import Sampler
    from rlcli.rollout.native import NativeSampler
    from rlcli.rollout.vllm.engine import VllmSettings
    from rlcli.rollout.vllm.replica import Replica
    from rlcli.rollout.vllm.server_sampler import ServerSampler
    from rlcli.trainer.run_plan import Plan


def end_tokens(tokenizer: Any, model_config: Any, folder: Path) -> tuple[tuple[int, ...], int]:
    """(tokens that end a response, the padding token) of the model in `folder`."""
    from rlcli.models.causal_lm import eos_token_ids

    eos = tuple(eos_token_ids(str(folder), tokenizer, model_config))
    pad = tokenizer.pad_token_id
    # a pad token that was only added to the tokenizer has no embedding
    if pad is None or pad >= model_config.get_text_config().vocab_size:
        return eos, eos[0]
    return eos, pad


def make_sampler(
    lm: CausalLM,
    tokenizer: Any,
    model_config: Any,
    folder: Path,
    *,
    max_num_seqs: int,
    shares_weights: bool = True,
    autocast_dtype: torch.dtype | None = None,
) -> NativeSampler:
    """The sampler of a model; `folder` has its end tokens."""
    from rlcli.rollout.native import NativeSampler

    eos, pad = end_tokens(tokenizer, model_config, folder)
    return NativeSampler(
        lm,
        tokenizer,
        eos_token_ids=eos,
        pad_token_id=pad,
        max_num_seqs=max_num_seqs,
        shares_weights=shares_weights,
        autocast_dtype=autocast_dtype,
    )


def check_width(plan: Plan, num_ranks: int) -> None:
    """Raises: ConfigError where the processes cannot hold one copy of the model among so many."""
    rollout = plan.config.rollout
    if rollout.engine != "vllm" or num_ranks % rollout.tensor_parallel == 0:
        return
    raise ConfigError(
        f"{plan.resolved.where('rollout.tensor_parallel')} needs a number of processes that is a "
        f"multiple of it; this run has {num_ranks}.\n"
        f"Set N_GPUS={rollout.tensor_parallel}, or rollout.tensor_parallel=1."
    )


def build_vllm(
    plan: Plan,
    engine: TorchEngine,
    dtype: torch.dtype,
    servers: Sequence[Replica],
) -> Sampler:
    """vLLM, in this process or served, held against the trainer after each new weights.

    servers: what `find_servers` found.
    """
    from rlcli.rollout.vllm.local_sampler import VllmSampler
    from rlcli.rollout.weight_sync_check import VerifiedSampler

    config = plan.config
    more = {
        "eos_token_ids": end_tokens(plan.tokenizer, plan.model_config, plan.model_dir)[0],
        "lora_alpha": config.lora.alpha,
        "weights": engine.weights if engine.ranks.size == 1 else None,
    }
    sampler: VllmSampler | ServerSampler
    if config.rollout.engine == "vllm_server":
        sampler = _share_servers(plan, engine, dtype, servers, **more)
    else:
        settings = _vllm_settings(plan, dtype, num_ranks=engine.ranks.size)
        try:
            sampler = VllmSampler(settings, plan.tokenizer, **more)
        except Exception as error:
            raise SamplerError(
                f"vLLM does not start: {error}\n"
                "Change rollout.memory_fraction, or use rollout.engine=native."
            ) from error
    return VerifiedSampler(
        sampler,
        engine,
        plan.train.prompts,
        temperature=config.rollout.temperature,
        max_tokens=config.data.max_response_tokens,
        dtype=dtype,
    )


def _vllm_settings(plan: Plan, dtype: torch.dtype, *, num_ranks: int) -> VllmSettings:
    import psutil

    from rlcli.rollout.vllm.engine import VllmSettings, cache_bytes

    config, rollout = plan.config, plan.config.rollout
    prompts = [*plan.train.prompts, *(plan.val.prompts if plan.val else ())]
    longest = max(len(prompt.token_ids) for prompt in prompts)
    max_tokens = longest + config.data.max_response_tokens
    needed = cache_bytes(
        plan.model_config,
        rows=rollout.max_num_seqs,
        tokens=max_tokens,
        bytes_per_number=dtype.itemsize,
    )
    free, served = psutil.virtual_memory().available, rollout.replicas
    is_asked = "rollout.memory_fraction" in plan.resolved.explicit
    is_alone = rollout.engine == "vllm_server" and not is_asked
    return VllmSettings(
        model_dir=plan.model_dir,
        dtype="bfloat16" if dtype.itemsize == 2 else "float32",
        device=plan.device.type,
        max_tokens=max_tokens,
        max_num_seqs=rollout.max_num_seqs,
        temperature=rollout.temperature,
        memory_fraction=SERVER_MEMORY_FRACTION if is_alone else rollout.memory_fraction,
        cache_bytes=min(needed, int(rollout.memory_fraction * free / max(num_ranks, served))),
        tensor_parallel=rollout.tensor_parallel,
        num_ranks=num_ranks,
        lora_rank=config.lora.rank,
        trust_remote_code=config.model.trust_remote_code,
        seed=config.run.seed % 2**31,
    )


def _share_servers(
    plan: Plan,
    engine: TorchEngine,
    dtype: torch.dtype,
    replicas: Sequence[Replica],
    **more: Any,
) -> ServerSampler:
    """All ranks ask the same servers; rank 0 found or started them, and gives them weights."""
    from rlcli.rollout.vllm.client import address_of
    from rlcli.rollout.vllm.replica import Replica
    from rlcli.rollout.vllm.server_sampler import ServerSampler

    ranks = engine.ranks
    found = ranks.gather([(one.address.url, one.base) for one in replicas])[0]
    if not ranks.is_first:
        settings = _vllm_settings(plan, dtype, num_ranks=ranks.size)
        replicas = [Replica(address_of(url), settings, base=base) for url, base in found]
    return ServerSampler(
        replicas,
        plan.tokenizer,
        sends=ranks.is_first,
        meet=lambda: ranks.gather(None),
        **more,
    )


def find_servers(plan: Plan, dtype: torch.dtype, run_dir: Path, ranks: Ranks) -> list[Replica]:
    """On rank 0 the servers of vLLM that this run samples from, where it does.

    Asked before weights are loaded: what is wrong with one is told at once.

    Raises: ConfigError where one that runs already is not fit; SamplerError where one ends while
    it starts.
    """
    from rlcli.rollout.vllm.server_sampler import join_replicas, start_replicas

    rollout = plan.config.rollout
    if rollout.engine != "vllm_server" or not ranks.is_first:
        return []
    settings = _vllm_settings(plan, dtype, num_ranks=ranks.size)
    if rollout.url is not None:
        return join_replicas(settings, [url.strip() for url in rollout.url.split(",")])
    gpus = _servers_gpus(rollout.replicas, rollout.tensor_parallel, first=ranks.size)
    wait = progress_line(translator(plan.config.run.lang))
    try:
        return start_replicas(
            settings,
            gpus if plan.device.type == "cuda" else [[] for _ in gpus],
            run_dir=run_dir,
            on_wait=lambda seconds: wait(f"waiting for vLLM's servers ({seconds:.0f} s)"),
        )
    finally:
        wait("")


def _servers_gpus(replicas: int, width: int, *, first: int) -> list[list[str]]:
    """The GPUs of each server: those after the ones that train, by the names CUDA gives them."""
    last = first + replicas * width
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible is not None else [str(gpu) for gpu in range(last)]
    return [names[start : start + width] for start in range(first, last, width)]
