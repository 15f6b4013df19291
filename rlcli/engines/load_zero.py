"""Policy and critic under ZeRO stage 3, never whole on the device.

They are loaded into host memory and shared out from there, one parameter at a time. What they
compute can be checked once DeepSpeed's engine gathers their layers.
"""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel

from rlcli.config.schema import Config
from rlcli.engines.critic import Critic
from rlcli.engines.deepspeed_engine import share_out
from rlcli.engines.lora import adapt
from rlcli.models.causal_lm import load_unchecked, set_up_layers
from rlcli.models.forward import CausalLM
from rlcli.models.load_check.finite import refuse_non_finite


def load_policy(
    config: Config, path: Path, device: torch.device, compute: torch.dtype
) -> tuple[CausalLM, PeftModel | None]:
    """(policy, the policy with adapters if there are any). Raises: ModelError."""
    lm = _load(config, path, device, compute)
    peft_model = adapt(lm, config.lora)
    share_out(lm.model, device, config.train, dtype=None if peft_model else compute)
    return lm, peft_model


def load_critic(
    config: Config, path: Path, device: torch.device, compute: torch.dtype, pad_token_id: int
) -> Critic:
    """A critic on the model at `path`, trained in the policy's dtype. Raises: ModelError."""
    body = _load(config, path, device, torch.float32, needs_head=False)
    critic = Critic(body, pad_token_id=pad_token_id)
    share_out(critic, device, config.train, dtype=None if config.lora.rank else compute)
    return critic


def _load(
    config: Config, path: Path, device: torch.device, dtype: torch.dtype, *, needs_head: bool = True
) -> CausalLM:
    trust = config.model.trust_remote_code
    lm = load_unchecked(str(path), dtype=dtype, trust_remote_code=trust, needs_head=needs_head)
    refuse_non_finite(lm.model, type(lm.model).__name__)
    set_up_layers(lm.model, device)
    return lm
