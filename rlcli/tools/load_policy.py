"""Load a trained policy from a final model or a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcli.config.schema import Config
from rlcli.errors import CheckpointError
from rlcli.rewards.composite_scorer import SCALE
from rlcli.run_dir.checkpoint import damage, saved_steps
from rlcli.setup.resources import find_model

if TYPE_CHECKING:
    import torch

    from rlcli.models.causal_lm import CausalLM


def find_checkpoint(run: Path, step: int | None) -> Path:
    """The final model's folder; before there is one, or with `step`, a checkpoint's.

    Raises: CheckpointError when there is none, or not all of it.
    """
    folder = _find(run / "checkpoints", step)
    if (problem := damage(folder)) is not None:
        raise CheckpointError(f"{problem}.\nrlcli ckpt verify {run} shows what is whole.")
    return folder


def _find(checkpoints: Path, step: int | None) -> Path:
    steps, final = saved_steps(checkpoints), checkpoints / "final"
    if step is None and final.is_dir():
        return final
    if not steps or step not in (None, *steps):
        have = ", ".join(map(str, steps)) or "none"
        wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
        raise CheckpointError(f"{checkpoints} has no {wanted}; it has: {have}")
    return checkpoints / f"step_{steps[-1] if step is None else step}"


def kept_scale(checkpoint: Path) -> dict[str, Any]:
    """What the run's reward kept of its scale, without what it spent; empty where it kept none."""
    steps = saved_steps(checkpoint.parent)
    is_final = checkpoint.name == "final" and bool(steps)
    file = (checkpoint.with_name(f"step_{steps[-1]}") if is_final else checkpoint) / "state.json"
    state = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {SCALE: state.get("scorer", {}).get(SCALE, {})}


def model_folder(config: Config, checkpoint: Path) -> Path:
    """The Hugging Face folder of the policy before the checkpoint's weights are put into it.

    Raises: ModelError when the model that was trained is not to be had.
    """
    is_whole = checkpoint.name == "final" and not config.lora.rank
    return checkpoint if is_whole else find_model(config, config.model.path)


def load_policy(
    config: Config, checkpoint: Path, *, device: torch.device, dtype: torch.dtype
) -> tuple[CausalLM, Any]:
    """(policy with the checkpoint's weights, its adapters or None).

    Raises: CheckpointError when the weights do not fit the run's model; ModelError.
    """
    from rlcli.engines.lora import add_lora
    from rlcli.models.causal_lm import load_causal_lm
    from rlcli.models.load_check import refuse_non_finite

    folder = model_folder(config, checkpoint)
    trust = config.model.trust_remote_code
    policy = load_causal_lm(str(folder), dtype=dtype, device=device, trust_remote_code=trust)
    peft_model = add_lora(policy.model, config.lora) if config.lora.rank else None
    if checkpoint.name != "final":
        _load_state(policy.model, checkpoint)
    elif peft_model is not None:
        _load_adapter(peft_model, checkpoint)
    refuse_non_finite(policy.model, str(checkpoint))
    return policy, peft_model


def _load_state(model: Any, checkpoint: Path) -> None:
    """Load the trained weights of a checkpoint of any engine."""
    import torch

    from rlcli.engines.sharded_checkpoint import StateReader

    with StateReader(checkpoint) as tensors, torch.no_grad():
        if not tensors:
            raise CheckpointError(f"{checkpoint} has no weights. Export the final model.")
        _fill(model, checkpoint, lambda name: tensors[f"policy.weight.{name}"])


def _fill(model: Any, file: Path, tensor: Callable[[str], Any]) -> None:
    from safetensors import SafetensorError

    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            try:
                parameter.copy_(tensor(name))
            except (SafetensorError, RuntimeError, KeyError) as error:
                raise CheckpointError(
                    f"{file} does not fit the run's model: {error}.\n"
                    "The model at model.path is not the one that was trained."
                ) from error


def _load_adapter(peft_model: Any, final: Path) -> None:
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    tensors = load_file(final / "adapter_model.safetensors")
    missed = set_peft_model_state_dict(peft_model, tensors).unexpected_keys
    if missed:
        raise CheckpointError(
            f"{final} does not fit the run's model: {missed[0]} is unknown to it."
        )
