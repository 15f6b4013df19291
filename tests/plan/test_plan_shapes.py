from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlcli.errors import ModelError, UsageError
from rlcli.plan.models import find_shape, known_config, known_models, similar_model
from rlcli.plan.shapes import shape_of

QWEN_HALF_B: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}


def test_qwen_half_b_has_as_many_parameters_as_its_card_says() -> None:
    assert shape_of(QWEN_HALF_B, name="x").parameters == 494_032_768


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen/Qwen2.5-0.5B", 494_032_768),
        ("Qwen/Qwen2-7B-Instruct", 7_615_616_512),
        ("meta-llama/Meta-Llama-3-8B", 8_030_261_248),
        ("mistralai/Mistral-7B-v0.1", 7_241_732_096),
        ("google/gemma-2-2b", 2_614_341_888),
        ("microsoft/Phi-3-mini-4k-instruct", 3_821_079_552),
        ("Qwen/Qwen3-0.6B", 596_049_920),
        # without their LM heads
        ("RLHFlow/ArmoRM-Llama3-8B-v0.1", 8_030_261_248 - 128_256 * 4096),
        ("berkeley-nest/Starling-RM-7B-alpha", 6_738_415_616 - 32_000 * 4096),
        ("OpenAssistant/reward-model-deberta-v3-large-v2", 434_012_160),
    ],
)
def test_well_known_models_are_known_without_a_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, parameters: int
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert find_shape(name).parameters == parameters


def test_a_copy_under_another_owner_or_with_a_suffix_has_the_same_shape() -> None:
    assert known_config("someone/qwen2.5-0.5b-instruct") == known_config("Qwen/Qwen2.5-0.5B")


def test_the_longest_name_of_the_table_wins() -> None:
    mini, large = known_config("microsoft/Phi-4-mini-instruct"), known_config("microsoft/phi-4")
    assert mini is not None
    assert large is not None
    assert (mini["hidden_size"], large["hidden_size"]) == (3072, 5120)


def test_a_directory_with_nothing_but_its_config_is_enough(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN_HALF_B))
    assert find_shape(str(tmp_path)).parameters == 494_032_768


def test_a_built_in_model_has_a_shape() -> None:
    assert find_shape("builtin:quickstart").layers == 4


@pytest.mark.parametrize("name", ["nobody/never-heard-of-it", "./not/here", "builtin:nothing"])
def test_a_model_that_nobody_knows_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(UsageError):
        find_shape(name)


def test_a_config_without_sizes_names_what_is_missing() -> None:
    with pytest.raises(ModelError, match="hidden_size, vocab_size"):
        shape_of({"num_hidden_layers": 2, "num_attention_heads": 2}, name="x")


def test_a_model_without_attention_is_not_called_something_else() -> None:
    sizes = {"model_type": "mamba2", "hidden_size": 8, "num_hidden_layers": 2, "vocab_size": 99}
    with pytest.raises(ModelError, match="no num_attention_heads") as refused:
        shape_of(sizes, name="x")
    assert "causal language model" not in str(refused.value)


def test_the_text_part_of_a_larger_model_is_its_shape() -> None:
    wrapped = {"model_type": "llava", "text_config": QWEN_HALF_B}
    assert shape_of(wrapped, name="x").parameters == 494_032_768


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("qwen2", {}),
        ("qwen3", {"head_dim": 48}),
        ("llama", {"tie_word_embeddings": False}),
        ("gemma2", {}),
        ("gemma3_text", {}),
        ("phi3", {"pad_token_id": 0}),
        ("qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
        ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    ],
)
def test_parameters_are_those_transformers_builds(kind: str, more: dict[str, Any]) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "vocab_size": 500,
        "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2,
    }  # fmt: skip
    config = AutoConfig.for_model(kind, **{**sizes, **more})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    found = sum(parameter.numel() for parameter in model.parameters())
    assert shape_of(config.to_dict(), name=kind).parameters == found


def test_every_row_of_the_table_is_a_shape() -> None:
    for name, config in known_models().items():
        assert shape_of(config, name=name).parameters > 10**8, name


def test_a_model_that_was_never_published_is_taken_for_the_nearest_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shape = find_shape("Qwen/Qwen2-14B-Instruct")
    assert shape.name == "Qwen/Qwen2-14B-Instruct (taken for Qwen2.5-14B)"
    assert shape.parameters == 14_770_033_664
    assert similar_model("someone/Nothing-14B") is None
    assert similar_model("Qwen/Qwen2.5-14B-Instruct") == "Qwen2.5-14B"
