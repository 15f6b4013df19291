"""Reward models with random weights, in the layout and under the names of the published ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from rlcli.rewards.reward_model import RewardModel
from rlcli.types import Prompt, Reward, Rollout

SPECIAL = ["<pad>", "<bos>", "<eos>", "[CLS]", "[SEP]", "<|eot_id|>"]
SPECIAL += ["<|start_header_id|>", "<|end_header_id|>"]
CHAT = (
    "<bos>{% for m in messages %}<{{ m.role }}>{{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
LLAMA3 = (
    "<bos>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "initializer_range": 0.4,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DEBERTA: dict[str, Any] = {
    "relative_attention": True,
    "position_buckets": 16,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
}
"""What reward-model-deberta-v3-large-v2 has beside its sizes."""
RESPONSES = ["4", "", "The answer is 19, since 12 + 7 = 19.", "no\n\nreally", "12 + 7"]


def save_tokens(folder: Path, *, template: str | None = None, pairs: bool = False) -> int:
    """A byte-level tokenizer that adds <bos>, or [CLS] and [SEP] around pairs; its size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: i for i, word in enumerate([*SPECIAL, *letters])}
    core = Tokenizer(models.BPE(vocab=words, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]" if pairs else "<bos> $A",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1" if pairs else "<bos> $A $B",
        special_tokens=[(name, words[name]) for name in ("<bos>", "[CLS]", "[SEP]")],
    )
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]"} if pairs else {"bos_token": "<bos>"}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        additional_special_tokens=SPECIAL[5:],
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **names,
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return len(words)


def save_classifier(folder: Path, kind: str, *, num_labels: int = 1, **changes: Any) -> Path:
    """A ...ForSequenceClassification with random weights; Deberta reads pairs, the others chat."""
    is_encoder = kind in ("DebertaV2", "Roberta")
    size = save_tokens(folder, template=None if is_encoder else CHAT, pairs=is_encoder)
    config_class = getattr(transformers, f"{kind}Config")
    more = DEBERTA if kind == "DebertaV2" else {}
    config = config_class(vocab_size=size, num_labels=num_labels, **{**SIZES, **more, **changes})
    torch.manual_seed(0)
    model_class = getattr(transformers, f"{kind}ForSequenceClassification")
    model_class(config).save_pretrained(folder)
    return folder


def save_armo(folder: Path) -> Path:
    """ArmoRM's files: its architecture, its names of weights, a Llama-3 chat template."""
    size = save_tokens(folder, template=LLAMA3)
    config = transformers.LlamaConfig(vocab_size=size, **SIZES)
    torch.manual_seed(0)
    body = transformers.LlamaModel(config).state_dict()
    weights = {f"model.{name}": tensor for name, tensor in body.items()}
    weights["regression_layer.weight"] = torch.randn(19, 16)
    weights["reward_transform_matrix"] = torch.eye(19) - 0.1 * torch.rand(19, 19)
    weights["gating.logit_scale"] = torch.tensor([1.5])
    for i, (fan_in, fan_out) in enumerate([(16, 8), (8, 8), (8, 8), (8, 19)]):
        weights[f"gating.layers.{i}.weight"] = torch.randn(fan_out, fan_in)
        weights[f"gating.layers.{i}.bias"] = torch.randn(fan_out)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    said = config.to_dict() | {
        "architectures": ["LlamaForRewardModelWithGating"],
        "auto_map": {
            "AutoModelForSequenceClassification": "modeling_custom.LlamaForRewardModelWithGating"
        },
        "num_objectives": 19,
        "gating_hidden_dim": 8,
        "gating_n_hidden": 3,
        "gating_temperature": 10,
    }
    (folder / "config.json").write_text(json.dumps(said))
    return folder


def save_starling(folder: Path, *, stored: tuple[str, ...] = ("model.", "transformer.")) -> Path:
    """Starling-RM-7B-alpha's files: one pickle, no tokenizer; the body under one or two names."""
    folder.mkdir(exist_ok=True)
    words = save_tokens(folder)
    config = transformers.LlamaConfig(vocab_size=words, **SIZES)
    torch.manual_seed(0)
    whole = transformers.LlamaForCausalLM(config).state_dict()
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in whole.items():
        if "model." in stored:
            weights[f"model.{name}"] = tensor
        if "transformer." in stored and name.startswith("model."):
            weights[f"transformer.{name.removeprefix('model.')}"] = tensor
    weights["v_head.weight"] = torch.randn(1, 16)
    weights["transformer.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    torch.save(weights, folder / "pytorch_model.bin")
    said = config.to_dict() | {
        "architectures": ["LLMForSequenceRegression"],
        "_name_or_path": "meta-llama/Llama-2-7b-chat-hf",
    }
    (folder / "config.json").write_text(json.dumps(said))
    return folder


def pickle_weights(folder: Path) -> dict[str, torch.Tensor]:
    """model.safetensors written again as pytorch_model.bin; what it holds."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    return weights


def change_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    """model.safetensors with weights added; None takes one away."""
    weights = load_file(folder / "model.safetensors") | changes
    kept = {name: tensor for name, tensor in weights.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def rollouts(responses: list[str], *, question: str = "12 + 7 = ?") -> list[Rollout]:
    prompt = Prompt(id="a:1", messages=({"role": "user", "content": question},), token_ids=(1,))
    return [
        Rollout(
            prompt=prompt,
            text=text,
            token_ids=(1,),
            logprobs=(0.0,),
            finish_reason="stop",
            policy_version=0,
        )
        for text in responses
    ]


def values(rewards: list[Reward]) -> list[float]:
    assert all(reward.value is not None for reward in rewards), rewards
    return [reward.value or 0.0 for reward in rewards]


def alone(model: RewardModel, responses: list[str]) -> list[float]:
    return [values(model.rate([rollout]))[0] for rollout in rollouts(responses)]
