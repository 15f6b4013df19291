"""Checkpoints as people bring them, refused or taken before any weight is loaded."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlcli.config.schema import Config, LoraConfig
from rlcli.engines.lora import add_lora
from rlcli.errors import ModelError
from rlcli.hub import ASSETS, find_model
from rlcli.models import weight_files
from rlcli.models.causal_lm import load_causal_lm
from rlcli.models.weight_files import positions_of, quantization_of
from rlcli.rewards.model_files import check_model_files
from rlcli.setup.resources import check_token_ids, open_model
from rlcli.types import Prompt

TEXT: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "eos_token_id": 3, "pad_token_id": 1, "bos_token_id": 2,
}  # fmt: skip
CLIP = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
VISION = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 4}
IMAGE_TEXT: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": {
        "text_config": {**TEXT, "rope_parameters": MROPE},
        "vision_config": {**VISION, "out_hidden_size": 32, "fullatt_block_indexes": [0]},
        "image_token_id": 10, "video_token_id": 11,
    },
    "mistral3": {
        "text_config": {"model_type": "mistral", "head_dim": 8, **TEXT},
        "vision_config": {"model_type": "pixtral", "head_dim": 8, **CLIP},
        "image_token_index": 10,
    },
    "llava": {
        "text_config": {"model_type": "llama", **TEXT},
        "vision_config": {"model_type": "clip_vision_model", **CLIP},
        "image_token_index": 10,
    },
    "idefics3": {
        "text_config": {"model_type": "llama", **TEXT},
        "vision_config": CLIP, "image_token_id": 10, "scale_factor": 2,
    },
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the built-in model."""
    return Path(shutil.copytree(ASSETS / "quickstart", tmp_path / "model"))


@pytest.fixture(scope="module")
def image_text(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    from transformers import AutoConfig, AutoModelForImageTextToText

    root = tmp_path_factory.mktemp("image_text")

    def make(kind: str) -> Path:
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **IMAGE_TEXT[kind])
        AutoModelForImageTextToText.from_config(config).save_pretrained(root / kind)
        for file in (ASSETS / "quickstart").glob("tokenizer*"):
            shutil.copy(file, root / kind)
        return root / kind

    return make


def opened(folder: Path, **settings: Any) -> Any:
    """The model as train, its dry run and plan open it."""
    config = Config(**settings)
    use = "adapters" if config.lora.rank else "train"
    return open_model(config, find_model(str(folder)), use, where="model.path=X")


def edit(folder: Path, file: str = "config.json", **values: Any) -> None:
    path = folder / file
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, **values}))


@pytest.mark.parametrize("kind", IMAGE_TEXT)
def test_an_image_text_checkpoint_is_trained_on_text_alone(
    image_text: Callable[[str], Path], kind: str
) -> None:
    folder = image_text(kind)
    assert opened(folder).embeddings == 512
    lm = load_causal_lm(str(folder), dtype=torch.float32, device=torch.device("cpu"))
    assert type(lm.model).__name__.endswith("ForConditionalGeneration")
    trained = {name for name, p in lm.model.named_parameters() if p.requires_grad}
    frozen = {name for name, _ in lm.model.named_parameters()} - trained
    assert frozen
    assert all("vis" in name or "projector" in name or "connector" in name for name in frozen)
    assert not any("vis" in name for name in trained)
    # the rows and labels of a text: what passes through no frozen part gets a gradient
    lm.model.set_attn_implementation("sdpa")  # of padded batches
    ids = torch.tensor([[20, 21, 22, 23]])
    hidden = lm.padded_hidden(ids, torch.ones_like(ids))
    lm.logits(hidden).log_softmax(-1)[..., 5].sum().backward()
    without = {n for n, p in lm.model.named_parameters() if p.requires_grad and p.grad is None}
    assert not without
    lora = add_lora(lm.model, LoraConfig(rank=2))
    adapted = [name for name, p in lora.named_parameters() if p.requires_grad]
    assert len(adapted) == 2 * 7 * 2  # A and B of seven matrices in two layers
    assert not any("vis" in name for name in adapted)


def test_text_rows_get_plain_positions_in_a_model_with_mrope(
    image_text: Callable[[str], Path],
) -> None:
    from transformers import AutoModelForImageTextToText

    folder = image_text("qwen2_5_vl")
    whole: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    lm = load_causal_lm(str(folder), dtype=torch.float32, device=torch.device("cpu"))
    lm.model.set_attn_implementation("sdpa")
    ids = torch.tensor([[20, 21, 22, 23, 24]])
    padded, mask = torch.nn.functional.pad(ids, (2, 0)), torch.tensor([[0, 0, 1, 1, 1, 1, 1]])
    with torch.no_grad():
        expected = whole(input_ids=ids).logits.log_softmax(-1)
        found = lm.logits(lm.padded_hidden(padded, mask))[:, 2:].log_softmax(-1)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "hqq"}, "hqq"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes_4bit"),
        ({"load_in_8bit": True}, "bitsandbytes_8bit"),  # as transformers 4.30 wrote it
    ],
)
def test_a_quantised_model_is_refused_by_name(
    folder: Path, settings: dict[str, Any], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(folder, quantization_config=settings)
    assert quantization_of(json.loads((folder / "config.json").read_text())) == method
    with pytest.raises(ModelError, match=rf"quantised \({method}\)"):
        opened(folder)
    monkeypatch.setattr(weight_files, "find_spec", lambda name: None)  # without bitsandbytes
    with pytest.raises(ModelError, match=rf"quantised \({method}\)"):
        opened(folder, lora={"rank": 4})
    with pytest.raises(ModelError, match=rf"quantised \({method}\)"):
        check_model_files(folder)


def test_quantised_text_in_an_image_text_model_is_found() -> None:
    text = {"quantization_config": {"quant_method": "gptq"}}
    assert quantization_of({"text_config": text}) == "gptq"
    assert quantization_of({"text_config": {}, "quantization_config": None}) is None


def pointer(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def error_page(file: Path) -> None:
    file.write_text("<!DOCTYPE html><html><title>404 Not Found</title></html>" * 20)


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_git_lfs_pointer_is_named_with_its_cure(folder: Path, name: str) -> None:
    pointer(folder / name)
    with pytest.raises(ModelError, match=f"{name} is a git-lfs pointer.*\n.*git lfs pull"):
        opened(folder)


@pytest.mark.parametrize(
    ("damage", "found"),
    [(cut, "is cut off"), (error_page, "header"), (empty, "header")],
)
def test_a_broken_weight_file_is_refused_by_its_header(
    folder: Path, damage: Callable[[Path], None], found: str
) -> None:
    damage(folder / "model.safetensors")
    with pytest.raises(ModelError, match=rf"model\.safetensors.*{found}"):
        opened(folder)


def sharded(folder: Path) -> Path:
    """The folder with its weights in two shards and an index. Returns: the index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    halves = [names[: len(names) // 2], names[len(names) // 2 :]]
    files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for file, half in zip(files, halves, strict=True):
        save_file({name: tensors[name] for name in half}, folder / file, {"format": "pt"})
    where = {name: file for file, half in zip(files, halves, strict=True) for name in half}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / "model.safetensors").unlink()
    return index


def test_shards_with_their_index_open_and_each_missing_file_is_named(folder: Path) -> None:
    index = sharded(folder)
    assert opened(folder).embeddings > 0
    kept = index.read_text()
    index.unlink()
    with pytest.raises(ModelError, match=r"2 shards of weights but no model\.safetensors\.index"):
        opened(folder)
    index.write_text(kept)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model-00002-of-00002\.safetensors"):
        opened(folder)
    index.write_text("not JSON")
    with pytest.raises(ModelError, match="is not an index of weights"):
        opened(folder)


def test_weights_under_another_name_are_listed(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    with pytest.raises(ModelError, match=r"no weights.*consolidated\.safetensors"):
        opened(folder)


def test_a_missing_weight_is_found_without_reading_any(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    gone = next(name for name in tensors if "down_proj" in name)
    del tensors[gone]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=f"lacks 1 of the model's weights, {gone}"):
        opened(folder)


def test_weights_of_another_shape_than_config_json_says_are_refused(folder: Path) -> None:
    size = json.loads((folder / "config.json").read_text())["intermediate_size"]
    edit(folder, intermediate_size=size + 8)
    with pytest.raises(ModelError, match=rf"mlp.*, {size}\], .*, {size + 8}\]"):
        opened(folder)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"hidden_size": "64"}, "cannot be read: .*hidden_size.* expected int"),
        ({"layer_types": ["full_attention"] * 9}, "cannot be read: .*layer_types"),
        ({"dtype": "float17"}, "cannot be read: .*float17"),
        ({"pad_token_id": 10**6}, "does not load as a language model: Padding_idx"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "cannot be read: .*rope_parameters"),
        ({"hidden_act": "nope"}, "does not load as a language model: 'nope'"),
    ],
)
def test_a_config_that_transformers_cannot_take_is_refused_in_one_sentence(
    folder: Path, values: dict[str, Any], found: str
) -> None:
    edit(folder, **values)
    with pytest.raises(ModelError, match=found):
        opened(folder)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"eos_token_id": 3', r"generation_config\.json is not valid JSON"),
        ('{"eos_token_id": "3"}', "has eos_token_id '3'; expected a number"),
        ('{"eos_token_id": [1, "3"]}', "has eos_token_id '3'; expected a number"),
    ],
)
def test_a_generation_config_that_cannot_be_read_is_named(
    folder: Path, text: str, found: str
) -> None:
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(ModelError, match=found):
        opened(folder)


def test_a_tokenizer_config_that_is_no_object_is_refused(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ModelError, match="has no tokenizer that loads"):
        opened(folder)


def test_a_large_model_opens_by_its_header_alone(folder: Path) -> None:
    """The data of the file is a hole: reading it would give zeros, opening takes no memory."""
    file = folder / "model.safetensors"
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    file.write_bytes(data[: 8 + length])
    with file.open("r+b") as opened_file:
        opened_file.truncate(len(data))
    assert opened(folder).embeddings > 0


def test_no_end_token_anywhere_names_the_file_to_set_it_in(folder: Path) -> None:
    edit(folder, eos_token_id=None)
    edit(folder, "tokenizer_config.json", eos_token=None)
    (folder / "generation_config.json").unlink(missing_ok=True)
    with pytest.raises(ModelError, match=r"Set eos_token_id in .*generation_config\.json"):
        opened(folder)
    edit(folder, "generation_config.json", eos_token_id=1)
    assert opened(folder).embeddings > 0
    edit(folder, "generation_config.json", eos_token_id=100_000)
    with pytest.raises(ModelError, match="100000"):
        opened(folder)


def resized(folder: Path, rows: int) -> None:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(rows)
    model.save_pretrained(folder)


def test_a_tokenizer_of_a_larger_vocabulary_is_refused_and_a_padded_embedding_is_not(
    folder: Path,
) -> None:
    size = opened(folder).embeddings
    resized(folder, size + 64)
    assert opened(folder).embeddings == size + 64
    resized(folder, 8)
    with pytest.raises(ModelError, match="8 token embeddings"):
        opened(folder)


def test_an_added_token_past_the_embedding_matters_only_if_a_prompt_has_it(folder: Path) -> None:
    """Gemma 3 1B comes so: its tokenizer has an image token that the text model has not."""
    model = opened(folder)
    model.tokenizer.add_tokens(["<image_soft_token>"])
    new = model.tokenizer.convert_tokens_to_ids("<image_soft_token>")
    assert new >= model.embeddings
    model.tokenizer.save_pretrained(folder)
    model = opened(folder)
    plain = Prompt(id="a", token_ids=(1, 2), messages=[], data_source="x", ground_truth="1")
    check_token_ids([plain], model)
    with pytest.raises(ModelError, match="<image_soft_token>"):
        check_token_ids(
            [Prompt(id="a", token_ids=(1, new), messages=[], data_source="x", ground_truth="1")],
            model,
        )


def test_a_model_that_generates_no_text_is_refused(tmp_path: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=512, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    for file in (ASSETS / "quickstart").glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    with pytest.raises(ModelError, match="type t5"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("values", "positions"),
    [
        # as Qwen's cards write YaRN: 32,768 stays, the factor is 4
        (
            {"max_position_embeddings": 32768, "rope_scaling": {
                "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
            131072,
        ),
        ({"max_position_embeddings": 32768, "rope_parameters": {
            "rope_type": "yarn", "factor": 4.0}}, 131072),
        # Llama 3.1 and Phi 3 name the extended length themselves
        (
            {"max_position_embeddings": 131072, "rope_scaling": {
                "rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}},
            131072,
        ),
        (
            {"max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
             "rope_scaling": {"type": "longrope", "long_factor": [1.0]}},
            131072,
        ),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4}}, 16384),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "dynamic", "factor": 2}}, 8192),
        # Gemma 3: a rope for each type of layer, the extended length in max_position_embeddings
        (
            {"max_position_embeddings": 131072, "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0},
                "sliding_attention": {"rope_type": "default"}}},
            131072,
        ),
        (
            {"max_position_embeddings": 4096, "rope_parameters": {
                "full_attention": {"rope_type": "yarn", "factor": 4.0,
                                   "original_max_position_embeddings": 4096},
                "sliding_attention": {"rope_type": "default"}}},
            16384,
        ),
        ({"text_config": {"max_position_embeddings": 64}}, 64),
        ({"max_position_embeddings": 2048}, 2048),
        ({"model_type": "bloom"}, None),
    ],
)  # fmt: skip
def test_positions_count_what_the_rope_extends_to(
    values: dict[str, Any], positions: int | None
) -> None:
    assert positions_of(values) == positions
