"""A causal language model ready for flat tokens, or for padded ones where it must be.

What sampler, trainer, critic and reference share: loading, the packed forward, the LM head on
chosen positions, and the probe that compares packed with plain log-probs before anything trains.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from rlcli.cpu_linear import speed_up_linears
from rlcli.errors import ModelError
from rlcli.gated import keep_all, keep_less
from rlcli.packed import ATTENTION, GroupLayout, Layout, PackingUnsupportedError

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

PROBE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25}


@dataclass(slots=True)
class CausalLM:
    """A transformers model and how to run it. `packed` False: only padded batches are right.

    source_dtype: what the checkpoint was stored in, and the trained model is saved in.
    """

    model: PreTrainedModel
    packed: bool
    source_dtype: torch.dtype
    notes: list[str] = field(default_factory=list[str])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    def hidden(self, token_ids_N: Tensor, position_ids: Tensor, layout: Layout) -> Tensor:
        """Last hidden states [N, D] of flat tokens, and of padding where positions are more."""
        decoder: Any = self.model.get_decoder()
        ids = F.pad(token_ids_N, (0, position_ids.shape[1] - len(token_ids_N)))
        out = decoder(
            input_ids=ids[None], position_ids=position_ids, use_cache=False, layout=layout
        )
        return out.last_hidden_state[0]

    def padded_hidden(self, token_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
        """Last hidden states [B, T, D] of a padded batch."""
        decoder: Any = self.model.get_decoder()
        positions = (attention_mask_BT.cumsum(1) - 1).clamp(min=0)
        out = decoder(
            input_ids=token_ids_BT,
            attention_mask=attention_mask_BT,
            position_ids=positions,
            use_cache=False,
        )
        return out.last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 logits [..., V] of hidden states [..., D]."""
        head: Any = self.model.get_output_embeddings()
        logits = head(hidden).float()
        config = self.model.config.get_text_config()
        if (scale := getattr(config, "logit_scale", None)) is not None:
            logits = logits * scale
        if (divisor := getattr(config, "logits_scaling", None)) is not None:
            logits = logits / divisor
        if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
            logits = torch.tanh(logits / cap) * cap
        return logits


def load_causal_lm(
    path: str,
    *,
    dtype: torch.dtype,
    device: torch.device,
    trust_remote_code: bool = False,
    needs_head: bool = True,
) -> CausalLM:
    """A model with its weights in `dtype`, packed where the probe finds that exact.

    Raises: ModelError when `path` holds no causal language model, or not all of its weights
    (without `needs_head` the LM head may be missing).
    """
    config = read_model_config(path, trust_remote_code=trust_remote_code)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, trust_remote_code=trust_remote_code, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        first = str(error).splitlines()[0]
        raise ModelError(f"{path} does not load as a causal language model: {first}") from error
    model, found = loaded
    missing = sorted(found["missing_keys"])
    if not needs_head:
        missing = [name for name in missing if not name.startswith("lm_head")]
    if missing:
        raise ModelError(
            f"{path} lacks {len(missing)} of the model's weights, {missing[0]} among them.\n"
            "Copy all *.safetensors files; weights made up at random would train in silence."
        )
    model.to(device)
    return prepare(model, source_dtype=config.dtype or dtype)


def check_architecture(config: Any) -> None:
    """Raises: ModelError for a model whose state is no keys and values (Mamba and its kind)."""
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if model_class is not None and getattr(model_class, "_is_stateful", False):
        raise ModelError(
            f"{config.model_type} models keep a recurrent state, which the native sampler cannot "
            "batch.\nChoose a model with attention in every layer."
        )


def prepare(model: PreTrainedModel, *, source_dtype: torch.dtype = torch.float32) -> CausalLM:
    """The model set up for packed batches, or for padded ones with a note that says why."""
    _silence_dropout(model)
    speed_up_linears(model)
    keep_less(model)
    lm = CausalLM(model=model, packed=True, source_dtype=source_dtype)
    plain = model.config._attn_implementation or "eager"
    try:
        reason = _why_not_packed(lm)
    except (
        PackingUnsupportedError,
        ValueError,
        TypeError,
        AttributeError,
        NotImplementedError,
    ) as e:
        reason = str(e).splitlines()[0]
    if reason:
        model.set_attn_implementation(plain)
        lm.packed = False
        lm.notes.append(f"{type(model).__name__} runs with padded batches (slower): {reason}")
    elif lm.device.type == "cuda":
        _attend_in_one_kernel(lm, plain)
    return lm


def _attend_in_one_kernel(lm: CausalLM, plain: str) -> None:
    """Take FlexAttention where it gives the plain log-probs; a note where padded buckets stay."""
    from rlcli.packed_flex import FLEX_ATTENTION, why_not_flex  # only CUDA needs the compiler

    reason = None
    for dtype in dict.fromkeys((torch.bfloat16, lm.model.dtype)):
        reason = reason or why_not_flex(lm.model.config, device=lm.device, dtype=dtype)
    if reason is None:
        lm.model.set_attn_implementation(plain)  # the probe's plain pass has no layout
        try:
            reason = _why_not_packed(lm, FLEX_ATTENTION)
        except Exception as error:  # of the compiler's own kinds
            reason = str(error).splitlines()[0]
    lm.model.set_attn_implementation(ATTENTION if reason else FLEX_ATTENTION)
    if reason:
        name = type(lm.model).__name__
        lm.notes.append(f"{name} attends in padded buckets (slower): {reason}")


def enable_gradient_checkpointing(model: PreTrainedModel) -> None:
    """Recompute activations in the backward pass."""
    keep_all(model)
    enable = getattr(model, "activation_checkpointing_enable", None)
    if enable is None:  # transformers before 5.20
        enable = model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _silence_dropout(model: nn.Module) -> None:
    """The update must see the policy that sampled: dropout inside the base model is turned off."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


@torch.no_grad()
def _why_not_packed(lm: CausalLM, attention: str = ATTENTION) -> str | None:
    """None when packed and padded log-probs agree on random tokens, else what differs."""
    config = lm.model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or []) - {
        "full_attention",
        "sliding_attention",
    }
    if kinds:
        return f"layers of type {', '.join(sorted(kinds))}"
    was_training = lm.model.training
    lm.model.eval()
    generator = torch.Generator().manual_seed(0)
    lengths, answers, group = (3, 7), (5, 2, 4), (0, 0, 1)
    sizes = [*lengths, *answers]
    drawn = torch.randint(0, config.vocab_size, (sum(sizes),), generator=generator).split(sizes)
    prompts, responses = drawn[: len(lengths)], drawn[len(lengths) :]
    plain = []
    for row, response in enumerate(responses):
        ids = torch.cat([prompts[group[row]], response])[None].to(lm.device)
        logits = lm.model(input_ids=ids, use_cache=False).logits.float()
        plain.append(_gather(logits[0, lengths[group[row]] - 1 : -1], response.to(lm.device)))
    lm.model.set_attn_implementation(attention)
    layout = GroupLayout(lengths, answers, group, lm.device)
    ids = torch.cat([*prompts, *(response[:-1] for response in responses)]).to(lm.device)
    hidden = lm.hidden(ids, layout.position_ids, layout)
    packed = _gather(lm.logits(hidden[layout.predicts_N]), torch.cat(responses).to(lm.device))
    lm.model.train(was_training)
    gap = float((packed - torch.cat(plain)).abs().max())
    if not gap <= PROBE_TOLERANCE.get(lm.model.dtype, 0.25):
        return f"packed and plain log-probs differ by {gap:.2g}"
    return None


def _gather(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]


def load_tokenizer(path: str, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model directory. Raises: ModelError when there is none."""
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError) as error:
        first = str(error).splitlines()[0]
        raise ModelError(
            f"model {path} has no tokenizer that loads: {first}\n"
            "Put tokenizer.json and tokenizer_config.json beside config.json."
        ) from error


def eos_token_ids(path: str, tokenizer: Any, model_config: Any) -> tuple[int, ...]:
    """Every id that ends a response: of the generation config, the model and the tokenizer."""
    found: set[int] = set()
    file = Path(path) / "generation_config.json"
    sources = [getattr(model_config, "eos_token_id", None), tokenizer.eos_token_id]
    if file.is_file():
        sources.append(json.loads(file.read_text()).get("eos_token_id"))
    for ids in sources:
        found.update([ids] if isinstance(ids, int) else ids or [])
    if not found:
        raise ModelError(f"model {path} names no end-of-sequence token; set eos_token_id")
    return tuple(sorted(found))


def positions_of(model_config: Any) -> int | None:
    """Positions a model has; None where nothing bounds them."""
    return getattr(model_config.get_text_config(), "max_position_embeddings", None)


def read_model_config(path: str, *, trust_remote_code: bool = False) -> Any:
    """The transformers config of a model, without its weights. Raises: ModelError."""
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"model {path} comes with code of its own, and its custom code is not run by "
                "itself.\nRead it, then add --trust_remote_code."
            ) from error
        first = str(error).splitlines()[0]
        raise ModelError(f"model {path} cannot be read: {first}") from error
