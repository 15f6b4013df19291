"""A model in shards has the weights, buffers and logits that transformers loads whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from saved_models import save_tiny_model
from tiny_models import build_tiny, model_types
from torch import nn
from transformers import AutoModelForCausalLM

from rlcli.engines.sharded_model import build_empty_lm, find_layers, gather_whole, load_shards
from rlcli.errors import ModelError
from rlcli.models.forward import CausalLM

CPU = torch.device("cpu")
COVERING = [
    "llama",
    "gpt2",  # tied, with positions that are learned
    "gemma3_text",  # a scaled embedding, and two rotary tables
    "qwen3_moe",  # experts, stored one by one and fused in memory
    "deepseek_v3",  # a bias of the router that is a buffer, and is stored
]
IDS = torch.arange(3, 12)[None]


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A process group of one."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def load(folder: Path) -> CausalLM:
    with ExitStack() as stack:
        lm, weights = build_empty_lm(
            str(folder), stack, dtype=torch.float32, trust_remote_code=False
        )
        return load_shards(lm, weights, lm.model, CPU)


def same(folder: Path) -> CausalLM:
    """The model in shards, if it is the one that transformers loads."""
    whole: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    lm = load(folder)
    expected, found = whole.state_dict(), lm.model.state_dict()
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(gather_whole(value, CPU), expected[name]), name
    buffers = dict(whole.named_buffers())
    for name, value in lm.model.named_buffers():
        assert torch.equal(value, buffers[name]), name
    model: Any = lm.model.eval()
    model.set_attn_implementation(whole.config._attn_implementation)
    with torch.no_grad():
        logits = lm.run(lambda: model(input_ids=IDS, use_cache=False).logits)
        torch.testing.assert_close(logits, whole(input_ids=IDS, use_cache=False).logits)
    return lm


@pytest.mark.parametrize(
    "kind",
    [
        *COVERING,
        *(pytest.param(k, marks=pytest.mark.nightly) for k in model_types() if k not in COVERING),
    ],
)
def test_it_is_the_model_that_transformers_loads(kind: str, tmp_path: Path, group: None) -> None:
    try:
        build_tiny(kind).save_pretrained(tmp_path / "model")
        whole = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
        whole(input_ids=IDS, use_cache=False)
    except Exception as error:
        pytest.skip(f"transformers has no tiny {kind}: {error}")
    try:
        same(tmp_path / "model")
    except ModelError as error:
        pytest.skip(f"not trained by any engine: {error}")


def test_a_head_that_is_stored_twice_is_tied_only_if_both_are_equal(
    tmp_path: Path, group: None
) -> None:
    for is_equal in (True, False):
        folder = save_tiny_model(tmp_path / str(is_equal), "Qwen2", tie_word_embeddings=True)
        file = folder / "model.safetensors"
        tensors = load_file(file)
        embedding = tensors["model.embed_tokens.weight"]
        head = embedding.clone()
        head[-1] += 0.0 if is_equal else 1.0
        save_file(tensors | {"lm_head.weight": head}, file, metadata={"format": "pt"})
        model: Any = same(folder).model
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == is_equal


def test_weights_in_several_files_and_pickled_ones_are_read(tmp_path: Path, group: None) -> None:
    folder = save_tiny_model(tmp_path / "one", "Llama")
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    model.save_pretrained(tmp_path / "several", max_shard_size="40KB")
    assert len([*(tmp_path / "several").glob("*.safetensors")]) > 2
    same(tmp_path / "several")
    (tmp_path / "pickled").mkdir()
    (folder / "config.json").rename(tmp_path / "pickled" / "config.json")
    torch.save(load_file(folder / "model.safetensors"), tmp_path / "pickled" / "pytorch_model.bin")
    same(tmp_path / "pickled")


def test_a_weight_that_is_missing_or_not_finite_is_refused(tmp_path: Path, group: None) -> None:
    folder = save_tiny_model(tmp_path / "model", "Llama")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    last = "model.layers.1.mlp.down_proj.weight"
    whole = tensors[last].clone()
    tensors[last][0, 0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"not finite.*down_proj"):
        load(folder)
    save_file({n: t for n, t in tensors.items() if n != last}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="lacks 1 of the model's weights"):
        load(folder)
    save_file(tensors | {last: whole.T.contiguous()}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"config\.json makes it"):
        load(folder)


def test_every_layer_is_sharded_by_itself_unless_it_shares_weights() -> None:
    model = nn.Module()
    model.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
    model.layers[2].weight = model.layers[0].weight
    model.blocks = nn.ModuleList([nn.ModuleList([nn.Linear(2, 2)]), nn.Identity()])
    assert find_layers(model) == [model.layers[1], model.blocks[0][0]]
    assert len(find_layers(build_tiny("qwen3_moe"))) == 4
