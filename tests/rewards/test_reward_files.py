"""Pickled weights, tokenizers that are elsewhere, and what a hub gives of a reward model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_hub import HUBS, FakeHub, Files, serve
from reward_models import (
    RESPONSES,
    alone,
    pickle_weights,
    save_classifier,
    save_starling,
)

from rlcli.config.rewards import RewardConfig
from rlcli.errors import ModelError, RewardError
from rlcli.rewards import check_reward
from rlcli.rewards.model_files import check_model_files, find_reward_files
from rlcli.rewards.reward_model import load_reward_model

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]
CODE = """
import json, sys
from pathlib import Path
from rlcli.errors import UsageError
from rlcli.rewards.model_files import find_cached_tokenizer, find_reward_files
said = []
for name in sys.argv[2:]:
    try:
        folder = find_reward_files(name, source=sys.argv[1])
        said.append(["ok", str(folder), str(find_cached_tokenizer(folder))])
    except UsageError as error:
        said.append([type(error).__name__, str(error)])
assert "torch" not in sys.modules
print(json.dumps(said))
"""


def ask(hub: str, *names: str, cache: Path, url: str) -> list[Any]:
    """["ok", folder, folder of the tokenizer] or [class of the error, message] per name."""
    kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    there = {"HF_ENDPOINT": url, "MODELSCOPE_ENDPOINT": url, "NO_PROXY": "*", "no_proxy": "*"}
    caches = {"HF_HOME": str(cache), "MODELSCOPE_CACHE": str(cache), "MODELSCOPE_HOME": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", CODE, hub, *names],
        env={**kept, **there, **caches},
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def files_of(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_openassistants_pickled_deberta_scores_as_its_safetensors_do(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "m", "DebertaV2")
    expected = alone(load_reward_model(folder, device=CPU), RESPONSES)
    weights = pickle_weights(folder)
    weights["deberta.embeddings.position_embeddings.weight"] = torch.ones(96, 16)
    torch.save(weights, folder / "pytorch_model.bin")
    assert check_reward(RewardConfig(model=str(folder)), {"x"}, model_dir=folder) == [
        f"the weights of reward.model={folder} are pickled (*.bin): they are read with "
        "weights_only, so that no code in them runs."
    ]
    assert alone(load_reward_model(folder, device=CPU), RESPONSES) == pytest.approx(
        expected, abs=1e-6
    )


class Burglar:
    """What a pickle can do to whoever loads it."""

    def __init__(self, loot: Path) -> None:
        self.loot = loot

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.loot, "taken"))


def test_code_in_a_pickle_is_refused_and_does_not_run(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "m", "Llama")
    weights = pickle_weights(folder)
    torch.save({**weights, "extra": Burglar(tmp_path / "loot")}, folder / "pytorch_model.bin")
    with pytest.raises(RewardError, match=r"has a \*\.bin with more than weights in it") as caught:
        load_reward_model(folder, device=CPU)
    assert "save_pretrained" in str(caught.value)
    assert str(caught.value).count("\n") < 3
    assert not (tmp_path / "loot").exists()


@pytest.mark.parametrize("content", [b"", b"half a pickle", [1, 2], {"a": 1}, {"a": {"b": 1}}])
def test_a_pickle_of_no_weights_is_refused(tmp_path: Path, content: Any) -> None:
    folder = save_classifier(tmp_path / "m", "Llama")
    pickle_weights(folder)
    if isinstance(content, bytes):
        (folder / "pytorch_model.bin").write_bytes(content)
    else:
        torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(RewardError):
        load_reward_model(folder, device=CPU)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "m", "Llama")
    (folder / "model.safetensors").unlink()
    assert check_model_files(folder) == []
    with pytest.raises(RewardError, match="does not load as a reward model"):
        load_reward_model(folder, device=CPU)


def test_a_model_without_a_tokenizer_names_what_is_missing(tmp_path: Path) -> None:
    folder = save_starling(tmp_path / "m")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ModelError, match="Llama-2-7b-chat-hf") as caught:
        find_reward_files(str(folder))
    assert "Copy the tokenizer files" in str(caught.value)
    assert str(caught.value).count("\n") < 3
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | {"_name_or_path": "/somebody/else"}))
    with pytest.raises(ModelError, match="names no model on a hub"):
        find_reward_files(str(folder))


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Files]:
    root = tmp_path_factory.mktemp("hub")
    starling = files_of(save_starling(root / "starling"))
    tokens = {name: starling.pop(name) for name in [*starling] if name.startswith("tokenizer")}
    both = save_classifier(root / "both", "Llama")
    weights = (both / "model.safetensors").read_bytes()
    pickle_weights(both)
    pickled = files_of(both)
    spare = {"training_args.bin": b"x", "rng_state_0.pth": b"x"}
    return {
        "models/me/both": {**pickled, "model.safetensors": weights},
        "models/me/pickled": {**pickled, **spare},
        "models/me/starling": {**starling, **spare},
        "models/meta-llama/Llama-2-7b-chat-hf": {**tokens, "model.safetensors": b"never asked for"},
        "models/me/odd": {name: data for name, data in pickled.items() if name.endswith(".json")},
    }


@pytest.fixture
def hub(repositories: dict[str, Files]) -> Iterator[FakeHub]:
    with serve(FakeHub(dict(repositories))) as running:
        yield running


@pytest.mark.parametrize("source", HUBS)
def test_a_hub_gives_pickled_weights_only_where_there_are_no_others(
    hub: FakeHub, tmp_path: Path, source: str
) -> None:
    names = ("me/both", "me/pickled", "me/starling", "me/odd")
    said = ask(source, *names, cache=tmp_path, url=hub.url)
    assert [outcome for outcome, *_ in said] == ["ok", "ok", "ok", "ModelError"]
    assert hub.served.count("model.safetensors") == 1
    assert hub.served.count("pytorch_model.bin") == 2
    assert not {"training_args.bin", "rng_state_0.pth"} & {*hub.served}
    both, pickled, starling, odd = said
    assert both[1] == both[2]
    assert (Path(pickled[1]) / "pytorch_model.bin").is_file()
    assert (Path(starling[2]) / "tokenizer.json").is_file()
    assert starling[2] != starling[1]
    assert "has neither *.safetensors nor pytorch_model*.bin" in odd[1]
    assert odd[1].count("\n") < 3
    hub.broken = b"<html>down</html>"
    again = ask(source, *names[1:3], cache=tmp_path, url=hub.url)
    assert again == said[1:3]


@pytest.mark.parametrize("source", HUBS)
def test_a_gated_tokenizer_is_said_with_the_cure(hub: FakeHub, tmp_path: Path, source: str) -> None:
    hub.gated["models/meta-llama/Llama-2-7b-chat-hf"] = 403
    ((outcome, message),) = ask(source, "me/starling", cache=tmp_path, url=hub.url)
    assert outcome == "ModelError"
    assert "does not give you model meta-llama/Llama-2-7b-chat-hf (403)" in message
    assert "Copy the tokenizer files" in message
    assert message.count("\n") < 3
