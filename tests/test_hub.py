"""Models and data from a hub: the real clients of Hugging Face and ModelScope, a hub of our own.

Each case runs in a process of its own, because the clients read the environment when imported.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from fake_hub import HUBS, FakeHub, serve

from rlcli.errors import ModelError, ModelNotFoundError
from rlcli.hub import ASSETS, find_model, find_model_config, find_tokenizer

ROOT = Path(__file__).resolve().parent.parent
CODE = """
import json, sys
from rlcli import hub
from rlcli.data.files import find_files
from rlcli.errors import UsageError
def config(name, offline):
    return hub.find_model_config(name, hub=sys.argv[1], offline=offline)["model_type"]
calls = {
    "model": lambda name: hub.find_model(name, hub=sys.argv[1]),
    "tokenizer": lambda name: hub.find_tokenizer(name, hub=sys.argv[1]),
    "config": lambda name: config(name, offline=False),
    "offline": lambda name: config(name, offline=True),
    "data": lambda name: " ".join(str(path) for path in find_files(name)),
}
said = []
for call in sys.argv[2:]:
    kind, _, name = call.partition("=")
    try:
        said.append(["ok", str(calls[kind](name))])
    except UsageError as error:
        said.append([type(error).__name__, str(error)])
print(json.dumps(said))
"""
MODEL = {path.name: path.read_bytes() for path in (ASSETS / "quickstart").iterdir()}


@pytest.fixture
def fake_hub() -> Iterator[FakeHub]:
    extra = {"original/consolidated.safetensors": b"again", "pytorch_model.bin": b"pickle"}
    pickled = {name: data for name, data in MODEL.items() if not name.endswith(".safetensors")}
    repos = {
        "models/me/tiny": {**MODEL, **extra, "README.md": b"read me"},
        "models/me/pickled": {**pickled, "pytorch_model.bin": b"pickle"},
        "models/me/gguf": {"README.md": b"a model in another format"},
        "models/me/gated": MODEL,
        "models/me/secret": MODEL,
        "datasets/me/rows": {
            "main/train-0.jsonl": b'{"prompt": "a"}\n',
            "main/train-1.jsonl": b'{"prompt": "b"}\n',
            "README.md": b"read me",
        },
    }
    with serve(FakeHub(repos, gated={"models/me/gated": 403, "models/me/secret": 401})) as hub:
        yield hub


def python(
    *arguments: str, cache: Path, url: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """A process whose hubs are at `url`, and whose caches are in `cache`."""
    kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    proxy = {"NO_PROXY": "*", "no_proxy": "*"}
    there = {"HF_ENDPOINT": url, "MODELSCOPE_ENDPOINT": url} if url else {}
    caches = {"HF_HOME": str(cache), "MODELSCOPE_CACHE": str(cache), "MODELSCOPE_HOME": str(cache)}
    return subprocess.run(
        [sys.executable, *arguments],
        env={**kept, **proxy, **there, **caches, **environment},
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )


def rlcli(*arguments: str, cache: Path, url: str) -> subprocess.CompletedProcess[str]:
    return python("-m", "rlcli.cli.main", *arguments, cache=cache, url=url)


def ask(hub: str, *calls: str, cache: Path, url: str = "", **environment: str) -> list[Any]:
    """[["ok", answer] or [class of the error, message]] per call, of one process."""
    done = python("-c", CODE, hub, *calls, cache=cache, url=url, **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def nowhere() -> str:
    """An address where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize("hub", HUBS)
def test_a_model_comes_whole_and_without_what_is_not_needed(
    fake_hub: FakeHub, tmp_path: Path, hub: str
) -> None:
    ((outcome, folder),) = ask(hub, "model=me/tiny", cache=tmp_path, url=fake_hub.url)
    assert outcome == "ok"
    assert sorted(fake_hub.served) == sorted(MODEL)
    assert {name: (Path(folder) / name).read_bytes() for name in MODEL} == MODEL


@pytest.mark.parametrize("hub", HUBS)
def test_config_and_tokenizer_come_without_weights(
    fake_hub: FakeHub, tmp_path: Path, hub: str
) -> None:
    calls = ("config=me/tiny", "offline=me/tiny", "tokenizer=me/tiny")
    said = ask(hub, *calls[:2], cache=tmp_path, url=fake_hub.url)
    assert said == [["ok", "qwen2"], ["ok", "qwen2"]]
    assert fake_hub.served == ["config.json"]
    ((outcome, _),) = ask(hub, calls[2], cache=tmp_path, url=fake_hub.url)
    assert outcome == "ok"
    assert "model.safetensors" not in fake_hub.served


@pytest.mark.parametrize("hub", HUBS)
def test_what_a_hub_does_not_give_is_named_with_the_cure(
    fake_hub: FakeHub, tmp_path: Path, hub: str
) -> None:
    names = ("none", "gated", "pickled", "gguf", "secret")
    calls = [f"model=me/{name}" for name in names]
    said = ask(hub, *calls, "config=me/none", cache=tmp_path, url=fake_hub.url)
    classes, messages = zip(*said, strict=True)
    not_found = "ModelNotFoundError"
    assert list(classes) == [not_found, not_found, "ModelError", *[not_found] * 3]
    assert "has no model me/none" in messages[0]
    assert fake_hub.url in messages[0]
    assert "does not give you model me/gated (403)" in messages[1]
    assert "does not give you model me/secret (401)" in messages[4]
    for message in (messages[1], messages[4]):
        assert ("HF_TOKEN" if hub == "hf" else "MODELSCOPE_API_TOKEN") in message
    assert "no *.safetensors weights" in messages[2]
    assert "save_pretrained" in messages[2]
    assert "me/gguf is empty" in messages[3]
    assert all(message.count("\n") < 3 for message in messages)
    assert "pytorch_model.bin" not in fake_hub.served


@pytest.mark.parametrize("hub", HUBS)
def test_a_download_that_breaks_off_is_no_model(
    fake_hub: FakeHub, tmp_path: Path, hub: str
) -> None:
    fake_hub.lost = {"model.safetensors"}
    ((outcome, message),) = ask(hub, "model=me/tiny", cache=tmp_path, url=fake_hub.url)
    assert outcome == "ModelNotFoundError"
    assert "me/tiny" in message
    assert fake_hub.url in message


@pytest.mark.parametrize("hub", HUBS)
def test_a_hub_that_cannot_be_reached_is_named_and_the_cache_serves(
    fake_hub: FakeHub, tmp_path: Path, nowhere: str, hub: str
) -> None:
    ((outcome, folder),) = ask(hub, "model=me/tiny", cache=tmp_path, url=fake_hub.url)
    assert outcome == "ok"
    ask(hub, "config=me/pickled", cache=tmp_path, url=fake_hub.url)
    calls = ("model=me/tiny", "model=me/other", "offline=me/other", "model=me/pickled")
    cached, missing, config, partial = ask(hub, *calls, cache=tmp_path, url=nowhere)
    assert cached == ["ok", folder]
    assert partial[0] == "ModelNotFoundError"
    assert "me/pickled is not on this machine" in partial[1]
    assert missing[0] == "ModelNotFoundError"
    assert "me/other is not on this machine" in missing[1]
    assert nowhere in missing[1]
    assert config[0] == "ModelNotFoundError"
    assert "is not in the cache" in config[1]


def test_hf_hub_offline_takes_the_cache_or_says_so(fake_hub: FakeHub, tmp_path: Path) -> None:
    ask("hf", "model=me/tiny", "config=me/pickled", cache=tmp_path, url=fake_hub.url)
    fake_hub.served.clear()
    calls = ("model=me/tiny", "model=me/other", "model=me/pickled", "config=me/other")
    said = ask("hf", *calls, cache=tmp_path, url=fake_hub.url, HF_HUB_OFFLINE="1")
    assert [outcome for outcome, _ in said] == ["ok", *["ModelNotFoundError"] * 3]
    assert all("HF_HUB_OFFLINE forbids" in message for _, message in said[1:])
    assert fake_hub.served == []


@pytest.mark.parametrize("endpoint", ["hf-mirror.com", "http://[bad", "http://a:b"])
def test_an_endpoint_that_is_no_address_is_named(tmp_path: Path, endpoint: str) -> None:
    ((outcome, message),) = ask("hf", "model=me/tiny", cache=tmp_path, HF_ENDPOINT=endpoint)
    assert outcome == "ModelNotFoundError"
    assert f"HF_ENDPOINT={endpoint} is no address; expected one such as https://" in message


@pytest.mark.parametrize("hub", HUBS)
@pytest.mark.parametrize("page", [b"<html>hello</html>", b"[]"])
def test_a_web_page_is_no_hub(tmp_path: Path, hub: str, page: bytes) -> None:
    with serve(FakeHub({}, broken=page)) as broken:
        said = ask(hub, "model=me/tiny", "data=hf:me/rows/a", cache=tmp_path, url=broken.url)
    assert [outcome for outcome, _ in said] == ["ModelNotFoundError", "DataNotFoundError"]
    assert all("me/" in message for _, message in said)


@pytest.mark.parametrize("hub", HUBS)
def test_data_of_a_hub_is_named_by_file_or_pattern(
    fake_hub: FakeHub, tmp_path: Path, hub: str
) -> None:
    said = ask(
        "hf",
        f"data={hub}:me/rows/main/train-1.jsonl",
        f"data={hub}:me/rows/main/train-*.jsonl",
        f"data={hub}:me/rows",
        f"data={hub}:me/rows/main/test-*.jsonl",
        f"data={hub}:me/none/a.jsonl",
        cache=tmp_path,
        url=fake_hub.url,
    )
    assert Path(said[0][1]).read_bytes() == b'{"prompt": "b"}\n'
    assert [Path(path).name for path in said[1][1].split()] == ["train-0.jsonl", "train-1.jsonl"]
    assert [outcome for outcome, _ in said[2:]] == ["DataNotFoundError"] * 3
    for _, message in said[2:4]:
        assert f"{hub}:me/rows/main/train-0.jsonl, {hub}:me/rows/main/train-1.jsonl" in message
    assert "has no dataset me/none" in said[4][1]


def test_without_the_sdk_the_line_to_type_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope_hub", None)
    with pytest.raises(ModelError, match=r"pip install -e '\.\[modelscope\]'") as caught:
        find_model("me/tiny", hub="modelscope")
    assert not isinstance(caught.value, ModelNotFoundError)


def test_a_folder_is_a_model_only_with_config_and_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="is not a directory"):
        find_model(str(tmp_path / "none"))
    with pytest.raises(ModelError, match=r"has no config\.json") as caught:
        find_model(str(tmp_path))
    assert not isinstance(caught.value, ModelNotFoundError)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ModelError, match="holds no JSON object"):
        find_model_config(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    assert find_model_config(str(tmp_path)) == {"model_type": "qwen2"}
    for find in (find_model, find_tokenizer):
        with pytest.raises(ModelError, match="has no tokenizer"):
            find(str(tmp_path))
    assert find_model("builtin:quickstart") == find_tokenizer("builtin:quickstart")


def parquet(**row: str) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("hub", HUBS)
def test_prepare_downloads_from_the_hub_and_writes_verls_schema(tmp_path: Path, hub: str) -> None:
    train, test = (parquet(question="How many?", answer=f"#### {n},500") for n in (1, 2))
    files = {"main/train-00000-of-00001.parquet": train, "main/test-00000-of-00001.parquet": test}
    repo = "openai/gsm8k" if hub == "hf" else "AI-ModelScope/gsm8k"
    with serve(FakeHub({f"datasets/{repo}": {**files, "socratic/train-0.parquet": test}})) as here:
        options = ["prepare", "gsm8k", "--local_dir", str(tmp_path / "out"), "--hub", hub, "--json"]
        done = rlcli("data", *options, cache=tmp_path, url=here.url)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert sorted(here.served) == sorted(files)
    assert {split: file["rows"] for split, file in report["files"].items()} == {
        "train": 1,
        "test": 1,
    }
    (row,) = pyarrow.parquet.read_table(tmp_path / "out" / "test.parquet").to_pylist()
    assert row["data_source"] == "openai/gsm8k"
    assert row["prompt"][0]["content"].startswith("How many?")
    assert row["reward_model"] == {"style": "rule", "ground_truth": "2500"}
    assert row["extra_info"]["split"] == "test"


def test_prepare_without_a_network_names_source(tmp_path: Path, nowhere: str) -> None:
    options = ["prepare", "math", "--local_dir", str(tmp_path)]
    done = rlcli("data", *options, cache=tmp_path, url=nowhere)
    assert done.returncode == 2
    assert f"HF_ENDPOINT={nowhere} cannot be reached" in done.stderr
    assert "add --source FILE_OR_FOLDER" in done.stderr


def test_training_data_may_come_from_a_hub(fake_hub: FakeHub, tmp_path: Path) -> None:
    source = "hf:me/rows/main/train-*.jsonl"
    done = rlcli("data", "check", source, "--json", cache=tmp_path, url=fake_hub.url)
    assert json.loads(done.stdout)["rows"] == 2
