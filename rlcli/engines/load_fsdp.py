"""Policy, reference and critic of a run in shards, and the copy that the built-in sampler reads."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import torch
from peft import PeftModel

from rlcli.config.schema import Config
from rlcli.engines.critic import Critic
from rlcli.engines.lora import adapt, adapters_with_values, add_lora
from rlcli.engines.sharded_model import build_empty_lm, load_shards
from rlcli.models.causal_lm import load_causal_lm
from rlcli.models.forward import CausalLM


def load_policy(
    config: Config, path: Path, device: torch.device, compute: torch.dtype
) -> tuple[CausalLM, PeftModel | None]:
    """(policy, the policy with adapters if there are any). Trained weights are float32.

    compute: the dtype of the passes, and of the frozen weights under adapters.
    """
    dtype = compute if config.lora.rank else torch.float32
    with ExitStack() as stack:
        lm, weights = build_empty_lm(
            str(path), stack, dtype=dtype, trust_remote_code=config.model.trust_remote_code
        )
        with adapters_with_values():
            peft_model = adapt(lm, config.lora)
        load_shards(
            lm,
            weights,
            lm.model,
            device,
            compute=_half(compute),
            offload=config.train.offloads,
        )
        return lm, peft_model


def load_reference(
    config: Config, path: Path, device: torch.device, compute: torch.dtype
) -> CausalLM:
    """The frozen start model, stored in the dtype it computes in: at the start its KL is 0."""
    with ExitStack() as stack:
        lm, weights = build_empty_lm(
            str(path), stack, dtype=compute, trust_remote_code=config.model.trust_remote_code
        )
        lm.model.requires_grad_(False).eval()
        is_fsdp = config.train.engine == "fsdp"
        offload = config.ref.offload_params or (is_fsdp and config.train.offloads)
        return load_shards(lm, weights, lm.model, device, offload=offload)


def load_critic(
    config: Config, path: Path, device: torch.device, compute: torch.dtype, pad_token_id: int
) -> Critic:
    """A critic on the model at `path`, with float32 weights."""
    with ExitStack() as stack:
        lm, weights = build_empty_lm(
            str(path),
            stack,
            dtype=torch.float32,
            trust_remote_code=config.model.trust_remote_code,
            needs_head=False,
        )
        critic = Critic(lm, pad_token_id=pad_token_id, device=torch.device("cpu"))
        load_shards(
            lm,
            weights,
            critic,
            device,
            compute=_half(compute),
            offload=config.train.offloads,
        )
        return critic


def load_sampled(
    config: Config, path: Path, device: torch.device, compute: torch.dtype
) -> CausalLM | None:
    """The whole copy that the built-in sampler reads, with adapters; None if vLLM samples."""
    if not config.rollout.is_native:
        return None
    lm = load_causal_lm(
        str(path),
        dtype=compute,
        device=device,
        trust_remote_code=config.model.trust_remote_code,
    )
    if config.lora.rank:
        add_lora(lm.model, config.lora)
        for parameter in lm.model.parameters():  # the policy gathers adapters in this dtype too
            parameter.data = parameter.data.to(compute)
    return lm


def _half(compute: torch.dtype) -> torch.dtype | None:
    return None if compute is torch.float32 else compute
