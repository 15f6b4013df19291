"""The engine and the sampler of a planned run, their weights loaded."""

from __future__ import annotations

import copy
import os
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from rlcli.config.schema import Config
from rlcli.system.hardware import keep_freed_memory, limit_kernels, usable_cores
from rlcli.trainer.build_sampler import (
    build_vllm,
    check_width,
    end_tokens,
    find_servers,
    make_sampler,
)

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

    from rlcli.algos.algorithm import Algorithm
    from rlcli.distributed.collectives import Ranks
    from rlcli.engines.critic import Critic
    from rlcli.engines.torch_engine import TorchEngine
    from rlcli.models.causal_lm import CausalLM
    from rlcli.rollout.base import Sampler
    from rlcli.trainer.run_plan import Plan


def set_up_cpu(device: torch.device, num_parameters: int) -> None:
    """Threads: one for tiny models, else the physical cores; OMP_NUM_THREADS wins. And memory.

    Two threads that wait for each other on small matrices are slower than one. Memory that was
    freed is kept for the next tensor, instead of being cleared by the kernel each time.
    """
    import torch

    if device.type != "cpu":
        return
    keep_freed_memory()
    limit_kernels()
    if "OMP_NUM_THREADS" not in os.environ:
        from rlcli.models.load_check import SINGLE_THREAD_PARAMETERS

        is_tiny = num_parameters < SINGLE_THREAD_PARAMETERS
        torch.set_num_threads(1 if is_tiny else usable_cores())


def compute_dtype(config: Config, device: torch.device) -> torch.dtype:
    """What model.dtype means on this device."""
    import torch

    wanted = config.model.dtype
    is_half = wanted == "bfloat16" or (wanted == "auto" and device.type == "cuda")
    return torch.bfloat16 if is_half else torch.float32


def build_models(
    plan: Plan, algorithm: Algorithm, ranks: Ranks, run_dir: Path
) -> tuple[TorchEngine, Sampler, list[str]]:
    """(engine, sampler, notes). Trained weights are float32; bfloat16 is how they compute.

    DeepSpeed and FSDP compute in bfloat16 weights, of which they keep float32 ones in shares.
    """
    import torch

    from rlcli.models.causal_lm import check_passes, enable_gradient_checkpointing

    config = plan.config
    check_width(plan, ranks.size)
    compute = compute_dtype(config, plan.device)
    is_half, uses_lora = compute is torch.bfloat16, config.lora.rank > 0
    servers = find_servers(plan, compute, run_dir, ranks)
    engine_class = choose_engine(config)
    trains_half = is_half and not uses_lora and engine_class.in_lockstep
    is_cast = is_half and not trains_half and not engine_class.loads_sharded
    autocast = compute if is_cast else None
    _, pad_token_id = end_tokens(plan.tokenizer, plan.model_config, plan.model_dir)
    parts = _choose_parts(engine_class, config)
    if parts is None:
        policy, sampled, peft_model, critic = _load_whole(
            plan, compute, ranks, pad_token_id=pad_token_id, trains_half=trains_half
        )
    else:
        policy, sampled, peft_model, critic = _load_parts(parts, plan, compute, pad_token_id)
    reference = None
    if algorithm.needs_reference and not uses_lora:
        reference = _make_reference(plan, policy, compute, shards=engine_class.in_lockstep)
    for model in (policy.model, critic and critic.body):
        if model is not None and config.model.gradient_checkpointing:
            enable_gradient_checkpointing(model)
    if config.model.compile:
        _compile(policy.model, reference and reference.model, critic and critic.body)
    is_exact = config.rollout.is_native and not is_half and not config.rollout.async_steps
    engine = engine_class(
        config,
        policy,
        total_steps=plan.num_steps,
        pad_token_id=pad_token_id,
        sampler_is_exact=is_exact,
        autocast_dtype=autocast,
        peft_model=peft_model,
        reference=reference,
        critic=critic,
        ranks=ranks,
    )
    if parts is not None and not engine_class.loads_sharded:  # could not compute before
        for lm in (policy, critic and critic.lm):
            if lm is not None:
                lm.run(partial(check_passes, lm, samples=False))
    if sampled is None:
        return engine, build_vllm(plan, engine, compute, servers), policy.notes
    sampler = make_sampler(
        sampled,
        plan.tokenizer,
        plan.model_config,
        plan.model_dir,
        max_num_seqs=config.rollout.max_num_seqs,
        shares_weights=sampled is policy,
        autocast_dtype=autocast if uses_lora else None,
    )
    return engine, sampler, policy.notes


Loaded = tuple["CausalLM", "CausalLM | None", "PeftModel | None", "Critic | None"]
"""Policy, what the native sampler samples from, the policy with adapters, critic."""


def _choose_parts(engine_class: type[TorchEngine], config: Config) -> ModuleType | None:
    """The module that loads trained models in shards; None if each rank loads them whole."""
    if engine_class.loads_sharded:
        from rlcli.engines import load_fsdp

        return load_fsdp
    if engine_class.shards_weights(config.train) and not config.rollout.is_native:
        from rlcli.engines import load_zero

        return load_zero
    return None


def _load_whole(
    plan: Plan, compute: torch.dtype, ranks: Ranks, *, pad_token_id: int, trains_half: bool
) -> Loaded:
    """Every model whole on every rank."""
    policy, sampled, peft_model = _load_policy(plan, compute, ranks, trains_half=trains_half)
    critic = _build_critic(plan, pad_token_id, ranks) if plan.critic_dir else None
    return policy, sampled, peft_model, critic


def _load_parts(parts: ModuleType, plan: Plan, compute: torch.dtype, pad_token_id: int) -> Loaded:
    """Trained models in shards, and a whole copy for the native sampler."""
    from rlcli.engines.load_fsdp import load_sampled

    config, device = plan.config, plan.device
    policy, peft_model = parts.load_policy(config, plan.model_dir, device, compute)
    set_up_cpu(device, policy.model.num_parameters())
    sampled = load_sampled(config, plan.model_dir, device, compute)
    critic = None
    if plan.critic_dir:
        critic = parts.load_critic(config, plan.critic_dir, device, compute, pad_token_id)
    return policy, sampled, peft_model, critic


def _make_reference(
    plan: Plan, policy: CausalLM, compute: torch.dtype, *, shards: bool
) -> CausalLM:
    """The frozen start model, as exact as the policy: only then is the first KL exactly 0."""
    if shards:
        from rlcli.engines.load_fsdp import load_reference

        return load_reference(plan.config, plan.model_dir, plan.device, compute)
    reference = copy.deepcopy(policy)
    reference.model.requires_grad_(False).eval()
    return reference


def _load_policy(
    plan: Plan, compute: torch.dtype, ranks: Ranks, *, trains_half: bool
) -> tuple[CausalLM, CausalLM | None, PeftModel | None]:
    """(policy, what the native sampler samples from, the policy with adapters), where there are."""
    import torch

    from rlcli.engines.lora import adapt
    from rlcli.models.causal_lm import load_causal_lm

    config, device, uses_lora = plan.config, plan.device, plan.config.lora.rank > 0
    load = partial(
        load_causal_lm,
        str(plan.model_dir),
        device=device,
        trust_remote_code=config.model.trust_remote_code,
        samples=config.rollout.is_native,
    )
    trained = compute if uses_lora or trains_half else torch.float32
    policy = load(dtype=trained)
    set_up_cpu(device, policy.model.num_parameters())
    peft_model = adapt(policy, config.lora)
    ranks.broadcast_parameters(policy.model)
    if not config.rollout.is_native:
        return policy, None, peft_model
    if trained is not compute:
        return policy, load(dtype=compute), peft_model
    if choose_engine(config).shards_weights(config.train):  # to put the shares together in
        return policy, copy.deepcopy(policy), peft_model
    return policy, policy, peft_model


def choose_engine(config: Config) -> type[TorchEngine]:
    """The class of the training engine. ZeRO stage 0 shards nothing: that is the torch engine."""
    if config.train.engine == "fsdp":
        from rlcli.engines.fsdp_engine import FsdpEngine

        return FsdpEngine
    if config.train.engine == "deepspeed" and config.train.zero_stage > 0:
        from rlcli.engines.deepspeed_engine import DeepSpeedEngine

        return DeepSpeedEngine
    from rlcli.engines.torch_engine import TorchEngine

    return TorchEngine


def _compile(*models: PreTrainedModel | None) -> None:
    from rlcli.models.compile import compile_layers

    for model in models:
        if model is not None:
            compile_layers(model)


def _build_critic(plan: Plan, pad_token_id: int, ranks: Ranks) -> Critic:
    from rlcli.engines.critic import load_critic

    critic = load_critic(
        str(plan.critic_dir),
        device=plan.device,
        pad_token_id=pad_token_id,
        trust_remote_code=plan.config.model.trust_remote_code,
    )
    ranks.broadcast_parameters(critic)
    return critic
