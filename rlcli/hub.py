"""From the name of a model to a folder on this machine, without loading a weight."""

from __future__ import annotations

import json
from pathlib import Path

from rlcli.errors import ModelError

BUILTIN = "builtin:"
ASSETS = Path(__file__).parent / "assets"
FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py"]


def find_model(path: str) -> Path:
    """The folder of a model: built in, local, or downloaded from the hub (or its cache).

    Raises: ModelError when there is no such folder, or the hub cannot be reached.
    """
    if path.startswith(BUILTIN):
        return _builtin(path.removeprefix(BUILTIN))
    folder = Path(path).expanduser()
    if folder.is_dir():
        return _checked(folder)
    looks_local = path.startswith((".", "/", "~")) or path.count("/") != 1
    if looks_local:
        raise ModelError(
            f"model {path} is not a directory. Give --model a directory with config.json, a hub "
            "name such as Qwen/Qwen2.5-0.5B, or try --preset quickstart."
        )
    return _checked(_download(path))


def _builtin(name: str) -> Path:
    folder = ASSETS / name
    known = sorted(p.parent.name for p in ASSETS.glob("*/config.json"))
    if name not in known:
        raise ModelError(f"no built-in model {name}; there is: {', '.join(known)}")
    return folder


def _checked(folder: Path) -> Path:
    config = folder / "config.json"
    if not config.is_file():
        raise ModelError(
            f"model {folder} has no config.json: it is not a Hugging Face model directory.\n"
            "Give --model the folder that holds config.json, the weights and the tokenizer."
        )
    try:
        json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{config} is not valid JSON: {error}") from error
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise ModelError(
            f"model {folder} has no tokenizer (tokenizer.json, tokenizer_config.json).\n"
            "Copy the tokenizer files of the model it comes from into it."
        )
    return folder


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(name, allow_patterns=FILES))
    except HfHubHTTPError as error:
        first = str(error).splitlines()[0]
        raise ModelError(
            f"the hub has no model {name} for you: {first}\n"
            "Check the name and HF_TOKEN, or give --model PATH of a local copy."
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise ModelError(
            f"model {name} is not on this machine and the hub cannot be reached.\n"
            "Try ./train.sh --preset quickstart (no network needed), or give --model PATH of a "
            "local copy."
        ) from error
