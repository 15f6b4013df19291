"""Starling in its two published layouts, its text, and where its head reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from reward_models import CHAT, RESPONSES, alone, rollouts, save_starling, save_tokens, values
from safetensors.torch import save_file

from rlcli.errors import RewardError
from rlcli.rewards.model_files import check_model_files, kind_of
from rlcli.rewards.reward_model import load_reward_model
from rlcli.rewards.starling import CHAT_TEMPLATE, MAX_TOKENS
from rlcli.types import Message

CPU = torch.device("cpu")


def scores(folder: Path) -> list[float]:
    return alone(load_reward_model(folder, device=CPU), RESPONSES)


@pytest.fixture(scope="module")
def starling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_starling(tmp_path_factory.mktemp("starling") / "7B")


def test_its_score_is_the_value_head_at_the_last_token_of_the_published_text(
    starling: Path,
) -> None:
    weights: dict[str, Any] = torch.load(starling / "pytorch_model.bin", weights_only=True)
    body = transformers.LlamaModel(transformers.LlamaConfig.from_pretrained(starling))
    body.load_state_dict(
        {
            name.removeprefix("transformer."): tensor
            for name, tensor in weights.items()
            if name.startswith("transformer.") and "inv_freq" not in name
        }
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(starling)
    text = "<bos>[INST] 12 + 7 = ? <eos> [/INST] 19<eos>"
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    assert int((ids == 1).sum()) == 1
    hidden = body.eval().requires_grad_(False)(ids).last_hidden_state[0, -1]
    expected = float(weights["v_head.weight"][0] @ hidden)
    model = load_reward_model(starling, device=CPU)
    assert alone(model, ["19"]) == [pytest.approx(expected, abs=1e-5)]


def test_its_text_has_system_and_earlier_turns_in_the_same_blocks(starling: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(starling)
    turns: list[Message] = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Hi!"},
        {"role": "user", "content": "How are you?"},
    ]
    text = tokenizer.apply_chat_template(turns, chat_template=CHAT_TEMPLATE, tokenize=False)
    assert text == (
        "<bos>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHello? <eos> [/INST] Hi!<eos>"
        "<bos>[INST] How are you? <eos> [/INST]"
    )


@pytest.mark.parametrize("stored", [("model.",), ("transformer.",)])
def test_a_body_under_either_of_its_names_is_the_same_model(
    starling: Path, tmp_path: Path, stored: tuple[str, ...]
) -> None:
    folder = save_starling(tmp_path / "once", stored=stored)
    assert scores(folder) == pytest.approx(scores(starling), abs=1e-6)


def test_a_pickle_in_shards_is_read(starling: Path, tmp_path: Path) -> None:
    weights: dict[str, Any] = torch.load(starling / "pytorch_model.bin", weights_only=True)
    folder = Path(shutil.copytree(starling, tmp_path / "shards"))
    (folder / "pytorch_model.bin").unlink()
    places = {name: f"pytorch_model-0000{1 + n % 2}-of-00002.bin" for n, name in enumerate(weights)}
    for shard in set(places.values()):
        torch.save({n: w for n, w in weights.items() if places[n] == shard}, folder / shard)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert kind_of(folder) == "starling"
    assert scores(folder) == pytest.approx(scores(starling), abs=1e-6)


def test_the_34b_model_is_known_by_its_head_and_reads_its_own_template(
    starling: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(starling, tmp_path / "34B"))
    save_tokens(folder, template=CHAT)
    weights: dict[str, Any] = torch.load(folder / "pytorch_model.bin", weights_only=True)
    (folder / "pytorch_model.bin").unlink()
    kept = {n: w for n, w in weights.items() if n.startswith(("transformer.", "v_head."))}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    said = json.loads((folder / "config.json").read_text())
    said["architectures"] = ["LlamaForSequenceClassification"]
    (folder / "config.json").write_text(json.dumps(said))
    assert check_model_files(folder) == []
    model = load_reward_model(folder, device=CPU)
    seen: list[list[int]] = []
    model.model.register_forward_pre_hook(
        lambda _, __, inputs: seen.append(inputs["input_ids"][0].tolist()), with_kwargs=True
    )
    alone(model, ["19"])
    assert model.tokenizer.decode(seen[0]) == "<bos><user>12 + 7 = ?<eos><assistant>19<eos>"


def test_it_reads_2048_tokens_at_most(starling: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(starling, tmp_path / "long"))
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | {"max_position_embeddings": 4096}))
    model = load_reward_model(folder, device=CPU)
    (reward,) = model.rate(rollouts(["7" * 3000]))
    assert f"which has {MAX_TOKENS - 1}; lower" in (reward.error or "")
    assert len(values(model.rate(rollouts(["19"], question="7" * 3000)))) == 1


@pytest.mark.parametrize("lost", ["v_head.weight", "transformer.layers.1.mlp.up_proj.weight"])
def test_a_missing_weight_is_refused(tmp_path: Path, lost: str) -> None:
    folder = save_starling(tmp_path / "m", stored=("transformer.",))
    weights: dict[str, Any] = torch.load(folder / "pytorch_model.bin", weights_only=True)
    weights.pop(lost)
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(RewardError, match=rf"lacks 1 weights of a StarlingModel, {lost} among"):
        load_reward_model(folder, device=CPU)


def test_a_weight_too_many_is_refused(tmp_path: Path) -> None:
    folder = save_starling(tmp_path / "m")
    weights: dict[str, Any] = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save(weights | {"v_head.bias": torch.ones(1)}, folder / "pytorch_model.bin")
    with pytest.raises(RewardError, match=r"1 weights that a StarlingModel does\s+not use, v_head"):
        load_reward_model(folder, device=CPU)
