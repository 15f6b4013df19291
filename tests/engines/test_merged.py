"""What is saved, read back by transformers, computes what the engine computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from rlcli.config.schema import LoraConfig
from rlcli.engines.adapter import merge_adapter
from rlcli.engines.check_saved import problems
from rlcli.engines.export import save_pretrained
from rlcli.engines.lora import add_lora, check_lora, untrained_experts
from rlcli.errors import ConfigError, ModelError, TrainingError
from rlcli.hub import ASSETS
from rlcli.models.causal_lm import CausalLM, load_causal_lm

# peft 0.21 warns about its own use of names that transformers deprecated
pytestmark = pytest.mark.filterwarnings("ignore")
IDS = torch.tensor([[5, 9, 4, 30, 7, 12]])
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "eos_token_id": 3,
    "pad_token_id": 1,
    "bos_token_id": None,
}
MOE = {**SIZES, "moe_intermediate_size": 16, "num_experts_per_tok": 2}
MODELS: dict[str, dict[str, Any]] = {
    "qwen3": {**SIZES, "head_dim": 8},
    # two fused weights on one module, stored as one file entry per expert
    "qwen3_moe": {**MOE, "head_dim": 8, "num_experts": 4},
    "mixtral": {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2},
    # shared experts are plain linear layers beside the fused ones
    "qwen2_moe": {**MOE, "num_experts": 4, "shared_expert_intermediate_size": 16},
    "olmoe": {**SIZES, "num_experts": 4, "num_experts_per_tok": 2},
    # a router that is a Linear and returns a tuple
    "phimoe": {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {**SIZES, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    # weights are stored transposed
    "gpt2": {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "gemma3_text": {**SIZES, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4},
}


def save_model(folder: Path, kind: str, **changes: Any) -> Path:
    """A random model of one kind with a tokenizer."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(MODELS[kind] | changes))
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(8)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(ASSETS / "quickstart").save_pretrained(folder)
    return folder


def load(folder: Path) -> CausalLM:
    return load_causal_lm(str(folder), dtype=torch.float32, device=torch.device("cpu"))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS, use_cache=False).logits


def gap(one: Any, other: Any) -> float:
    return float((logits(one) - logits(other)).abs().max())


def read(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def adapted(folder: Path, targets: str | list[str]) -> tuple[CausalLM, PeftModel]:
    """A policy whose adapters are not zero."""
    policy = load(folder)
    peft_model = add_lora(policy.model, LoraConfig(rank=3, targets=targets))
    torch.manual_seed(1)
    for parameter in policy.model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.2)
    return policy, peft_model


@pytest.mark.parametrize(
    ("kind", "targets", "changes"),
    [
        *((kind, "all-linear", {}) for kind in MODELS),
        ("gemma3_text", ["lm_head", "q_proj"], {"tie_word_embeddings": True}),
        ("qwen3", ["embed_tokens", "v_proj"], {"tie_word_embeddings": True}),
        ("qwen3", ["embed_tokens", "lm_head"], {"tie_word_embeddings": False}),
    ],
)
def test_base_with_adapter_and_merged_compute_what_the_policy_does(
    tmp_path: Path, kind: str, targets: str | list[str], changes: dict[str, Any]
) -> None:
    base = save_model(tmp_path / "base", kind, **changes)
    policy, peft_model = adapted(base, targets)
    tokenizer = AutoTokenizer.from_pretrained(base)
    save_pretrained(policy, peft_model, tmp_path / "out", tokenizer, merge_lora=True)
    merged = read(tmp_path / "out" / "merged")
    with_adapter = PeftModel.from_pretrained(read(base), str(tmp_path / "out"))
    moved = gap(read(base), merged)
    assert moved > 0.1, "the adapter does nothing: the test would prove nothing"
    assert gap(with_adapter, merged) < 2e-5 * max(1.0, float(logits(merged).abs().max()))
    assert [*problems(tmp_path / "out"), *problems(tmp_path / "out" / "merged")] == []
    settings = json.loads((tmp_path / "out" / "merged" / "config.json").read_text())
    head, embedding = merged.get_output_embeddings(), merged.get_input_embeddings()
    assert settings.get("tie_word_embeddings", True) == torch.equal(head.weight, embedding.weight)


def test_a_head_that_the_flag_denies_is_kept_and_the_flag_corrected(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", "qwen3", tie_word_embeddings=False)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    policy = load(base)
    save_pretrained(
        policy, None, tmp_path / "out", AutoTokenizer.from_pretrained(base), merge_lora=False
    )
    assert (
        json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    )
    before, after = (
        load_file(base / "model.safetensors"),
        load_file(tmp_path / "out" / "model.safetensors"),
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("source", [torch.bfloat16, torch.float16])
def test_weights_stored_in_half_the_bits_pass_the_read_back(
    tmp_path: Path, source: torch.dtype
) -> None:
    base = save_model(tmp_path / "base", "qwen3_moe")
    policy, peft_model = adapted(base, "all-linear")
    policy.source_dtype = source
    tokenizer = AutoTokenizer.from_pretrained(base)
    save_pretrained(policy, peft_model, tmp_path / "out", tokenizer, merge_lora=True)
    saved = load_file(tmp_path / "out" / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {source}


def test_a_folder_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    """Names and shapes are right: only what it predicts tells."""
    base = save_model(tmp_path / "base", "qwen3")
    policy = load(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    # transformers loads it with another base of the rotary angles than the policy computes with
    policy.model.config.rope_parameters["rope_theta"] = 10.0
    with pytest.raises(TrainingError, match="another model"):
        save_pretrained(policy, None, tmp_path / "out", tokenizer, merge_lora=False)


def lose(tensors: dict[str, torch.Tensor]) -> None:
    tensors.pop("model.layers.1.mlp.experts.2.up_proj.weight")


def rename(tensors: dict[str, torch.Tensor]) -> None:
    name = "model.layers.0.self_attn.q_proj"
    tensors[f"{name}.base_layer.weight"] = tensors.pop(f"{name}.weight")


def cut(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:4].clone()


def spoil(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"][0] = torch.nan


@pytest.mark.parametrize("change", [lose, rename, cut, spoil])
def test_a_folder_that_is_not_the_whole_model_has_problems(tmp_path: Path, change: Any) -> None:
    folder = save_model(tmp_path / "model", "qwen3_moe")
    assert list(problems(folder)) == []
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert list(problems(folder))


def test_an_adapter_that_lost_a_weight_has_problems(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", "mixtral")
    policy, peft_model = adapted(base, "all-linear")
    tokenizer = AutoTokenizer.from_pretrained(base)
    save_pretrained(policy, peft_model, tmp_path / "out", tokenizer, merge_lora=False)
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    name = next(name for name in tensors if "experts" in name)
    del tensors[name]
    save_file(tensors, tmp_path / "out" / "adapter_model.safetensors")
    assert name in next(problems(tmp_path / "out"))


def test_files_beside_the_weights_are_kept(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", "qwen3")
    kept = {"processor_config.json", "video_preprocessor_config.json", "chat_template.jinja"}
    kept |= {"modeling_own.py", "LICENSE"}
    left = {"trainer_state.json", "optimizer.bin", "notes.md"}
    for name in kept | left:
        (base / name).write_text("{}")
    policy, peft_model = adapted(base, "all-linear")
    tokenizer = AutoTokenizer.from_pretrained(base)
    save_pretrained(policy, peft_model, tmp_path / "out", tokenizer, merge_lora=True)
    for folder in (tmp_path / "out", tmp_path / "out" / "merged"):
        found = {file.name for file in folder.iterdir()}
        assert kept <= found
        assert not left & found


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({"target_modules": "all-linear", "use_dora": True}, {}),
        ({"target_modules": "all-linear", "use_rslora": True}, {}),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, {}),
        ({"target_modules": ["lm_head", "q_proj"]}, {"tie_word_embeddings": True}),
        ({"target_modules": ["q_proj"]}, {"tie_word_embeddings": True}),
    ],
)
def test_an_adapter_of_any_kind_merges_into_its_base(
    tmp_path: Path, settings: dict[str, Any], changes: dict[str, Any]
) -> None:
    base = save_model(tmp_path / "base", "qwen3", **changes)
    torch.manual_seed(2)
    config = PeftLoraConfig(r=4, task_type="CAUSAL_LM", init_lora_weights=False, **settings)
    made: Any = get_peft_model(read(base), config)
    for name, parameter in made.named_parameters():
        if "modules_to_save" in name:
            parameter.data.add_(torch.randn_like(parameter))
    made.save_pretrained(tmp_path / "adapter")
    dest = tmp_path / "merged"
    merge_adapter(base, tmp_path / "adapter", dest, tokenizer=base, trust_remote_code=False)
    merged = read(dest)
    assert gap(read(base), merged) > 0.1
    assert gap(made, merged) < 2e-5 * float(logits(merged).abs().max())
    ends = merged.get_output_embeddings().weight, merged.get_input_embeddings().weight
    flag = json.loads((dest / "config.json").read_text())["tie_word_embeddings"]
    assert flag == torch.equal(*ends)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", "qwen3")
    other = save_model(tmp_path / "other", "qwen3", hidden_size=16)
    made: Any = get_peft_model(read(other), PeftLoraConfig(r=2, target_modules="all-linear"))
    made.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match="does not fit"):
        merge_adapter(
            base, tmp_path / "adapter", tmp_path / "out", tokenizer=base, trust_remote_code=False
        )


@pytest.mark.parametrize(
    ("kind", "lora", "word"),
    [
        ("mixtral", {"dropout": 0.1}, "Set lora.dropout=0"),
        ("qwen3", {"targets": "q_proj,v_prj"}, "v_prj"),
        ("phimoe", {"targets": ["router"]}, "router"),
    ],
)
def test_settings_that_cannot_be_are_refused_without_weights(
    tmp_path: Path, kind: str, lora: dict[str, Any], word: str
) -> None:
    config = AutoConfig.for_model(kind, **MODELS[kind])
    with pytest.raises(ConfigError, match=word):
        check_lora(config, LoraConfig(rank=2, **lora), trust_remote_code=False)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("q_proj,v_proj", ["q_proj", "v_proj"]),
        ("q_proj", ["q_proj"]),
        ("all-linear", "all-linear"),
        (r".*\.(q|v)_proj", r".*\.(q|v)_proj"),
    ],
)
def test_targets_in_one_text(text: str, meant: str | list[str]) -> None:
    assert LoraConfig(targets=text).targets == meant


def test_experts_without_an_adapter_are_reported(tmp_path: Path) -> None:
    for kind, is_left in (("gpt_oss", True), ("mixtral", False), ("qwen3", False)):
        policy, _ = adapted(save_model(tmp_path / kind, kind), "all-linear")
        assert (untrained_experts(policy.model) is not None) == is_left
    policy, _ = adapted(tmp_path / "mixtral", ["q_proj"])
    assert untrained_experts(policy.model) is not None
