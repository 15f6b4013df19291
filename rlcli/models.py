"""The engine and the sampler of a planned run, their weights loaded."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rlcli.config.schema import Config
from rlcli.machine import keep_freed_memory, limit_kernels, usable_cores
from rlcli.samplers import build_vllm, check_width, end_tokens, find_servers, make_sampler

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

    from rlcli.algos.algorithm import Algorithm
    from rlcli.build import Plan
    from rlcli.causal_lm import CausalLM
    from rlcli.engines.critic import Critic
    from rlcli.engines.ranks import Ranks
    from rlcli.engines.torch_engine import TorchEngine
    from rlcli.rollout.base import Sampler

SINGLE_THREAD_PARAMETERS = 20_000_000


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
        is_tiny = num_parameters < SINGLE_THREAD_PARAMETERS
        torch.set_num_threads(1 if is_tiny else usable_cores())


def compute_dtype(config: Config, device: torch.device) -> torch.dtype:
    """What model.dtype means on this device."""
    import torch

    wanted = config.model.dtype
    is_half = wanted == "bfloat16" or (wanted == "auto" and device.type == "cuda")
    return torch.bfloat16 if is_half else torch.float32


def build_models(
    plan: Plan, algorithm: Algorithm, ranks: Ranks, run_dir: Path, *, tell: Callable[[str], None]
) -> tuple[TorchEngine, Sampler, list[str]]:
    """(engine, sampler, notes). Trained weights are float32; bfloat16 is how they compute.

    tell: what happens to the sampler later.
    DeepSpeed trains bfloat16 weights, of which it keeps float32 ones in shares.
    """
    import torch

    from rlcli.causal_lm import enable_gradient_checkpointing

    config = plan.config
    check_width(plan, ranks.size)
    compute = compute_dtype(config, plan.device)
    is_half, uses_lora = compute is torch.bfloat16, config.lora.rank > 0
    servers = find_servers(plan, compute, run_dir, ranks)
    engine_class = choose_engine(config)
    trains_half = is_half and not uses_lora and engine_class.in_lockstep
    autocast = compute if is_half and not trains_half else None
    policy, sampled, peft_model = _load_policy(plan, compute, ranks, trains_half=trains_half)
    reference = None
    if algorithm.needs_reference and not uses_lora:
        # as exact as the policy: only then is the KL at the start exactly 0
        reference = copy.deepcopy(policy)
        reference.model.requires_grad_(False).eval()
    if config.model.gradient_checkpointing:
        enable_gradient_checkpointing(policy.model)
    _, pad_token_id = end_tokens(plan, plan.model_dir)
    critic = _build_critic(plan, pad_token_id, ranks) if plan.critic_dir else None
    if config.model.compile:
        _compile(policy.model, reference and reference.model, critic and critic.body)
    engine = engine_class(
        config,
        policy,
        total_steps=plan.num_steps,
        pad_token_id=pad_token_id,
        sampler_is_exact=config.rollout.is_native
        and not is_half
        and not config.rollout.async_steps,
        autocast_dtype=autocast,
        peft_model=peft_model,
        reference=reference,
        critic=critic,
        ranks=ranks,
    )
    if sampled is None:
        return engine, build_vllm(plan, engine, compute, servers, tell=tell), policy.notes
    sampler = make_sampler(
        sampled,
        plan,
        plan.model_dir,
        shares_weights=sampled is policy,
        autocast_dtype=autocast if uses_lora else None,
    )
    return engine, sampler, policy.notes


def _load_policy(
    plan: Plan, compute: torch.dtype, ranks: Ranks, *, trains_half: bool
) -> tuple[CausalLM, CausalLM | None, PeftModel | None]:
    """(policy, what the native sampler samples from, the policy with adapters), where there are."""
    import torch

    from rlcli.causal_lm import load_causal_lm
    from rlcli.engines.lora import add_lora

    config, device, uses_lora = plan.config, plan.device, plan.config.lora.rank > 0
    trust = config.model.trust_remote_code
    load = partial(load_causal_lm, str(plan.model_dir), device=device, trust_remote_code=trust)
    trained = compute if uses_lora or trains_half else torch.float32
    policy = load(dtype=trained)
    set_up_cpu(device, policy.model.num_parameters())
    peft_model = add_lora(policy.model, config.lora) if uses_lora else None
    ranks.equalize(policy.model)
    if not config.rollout.is_native:
        return policy, None, peft_model
    if trained is not compute:
        return policy, load(dtype=compute), peft_model
    if choose_engine(config).shards_weights(config.train):  # to put the shares together in
        return policy, copy.deepcopy(policy), peft_model
    return policy, policy, peft_model


def choose_engine(config: Config) -> type[TorchEngine]:
    """The class of the training engine. ZeRO stage 0 shards nothing: that is the torch engine."""
    if config.train.engine == "deepspeed" and config.train.zero_stage > 0:
        from rlcli.engines.deepspeed_engine import DeepSpeedEngine

        return DeepSpeedEngine
    from rlcli.engines.torch_engine import TorchEngine

    return TorchEngine


def _compile(*models: PreTrainedModel | None) -> None:
    from rlcli.compiled import compile_layers

    for model in models:
        if model is not None:
            compile_layers(model)


def _build_critic(plan: Plan, pad_token_id: int, ranks: Ranks) -> Critic:
    from rlcli.causal_lm import enable_gradient_checkpointing
    from rlcli.engines.critic import load_critic

    critic = load_critic(
        str(plan.critic_dir),
        device=plan.device,
        pad_token_id=pad_token_id,
        trust_remote_code=plan.config.model.trust_remote_code,
    )
    if plan.config.model.gradient_checkpointing:
        enable_gradient_checkpointing(critic.body)
    ranks.equalize(critic)
    return critic
