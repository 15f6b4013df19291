"""A reward model's files: where they are, and what they say before a weight is loaded."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from rlcli import hub
from rlcli.errors import ModelError, ModelNotFoundError, RewardError
from rlcli.models.weight_files import check_pointers, check_quantization, check_weight_files

Kind = Literal["classifier", "armo", "starling"]

CLASSIFIER = "ForSequenceClassification"
ARMO = "LlamaForRewardModelWithGating"
"""RLHFlow/ArmoRM-Llama3-8B-v0.1."""
STARLING = "LLMForSequenceRegression"
"""berkeley-nest/Starling-RM-7B-alpha; Starling-RM-34B is known by `VALUE_HEAD` alone."""
VALUE_HEAD = "v_head.weight"
PICKLES = "pytorch_model*.bin"
PICKLED_FILES = ("*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", PICKLES)


def find_reward_files(path: str, *, source: hub.Hub = "hf") -> Path:
    """The folder of a reward model: local, or downloaded from the hub (or its cache).

    Pickled weights are downloaded where there are no others: they are read as weights alone.

    Raises:
        ModelNotFoundError: there is no such folder, and the hub does not give it.
        ModelError: a folder that is not a whole model.
    """
    folder = hub.find_local(path) or _download(path, source)
    check_pointers(folder)
    hub.read_config(folder)
    check_weight_files(folder)
    find_tokenizer_of(folder, source=source)
    return folder


def find_tokenizer_of(folder: Path, *, source: hub.Hub, offline: bool = False) -> Path:
    """`folder`, or where it has no tokenizer the one of the model that its config.json names.

    Starling comes without a tokenizer. offline: only from the hub's cache.

    Raises: ModelError when there is neither.
    """
    if hub.has_tokenizer(folder):
        return folder
    base = str(hub.read_config(folder).get("_name_or_path") or "")
    reason = f"and its config.json names no model on a hub (_name_or_path is {base!r})"
    if base.count("/") == 1 and not base.startswith((".", "/", "~")):
        try:
            return _fetch_tokenizer(base, source, offline=offline)
        except ModelNotFoundError as error:
            reason = f"and the one it was trained with is not to be had: {error.args[0]}"
    raise ModelError(
        f"model {folder} has no tokenizer, {reason.splitlines()[0]}\n"
        "Copy the tokenizer files of the model it comes from into it."
    )


def _fetch_tokenizer(base: str, source: hub.Hub, *, offline: bool) -> Path:
    with suppress(ModelNotFoundError):
        cached = hub.fetch(base, hub.TOKENIZER_FILES, hub=source, kind="model", offline=True)
        if offline or hub.has_tokenizer(cached):
            return cached
    return hub.fetch(base, hub.TOKENIZER_FILES, hub=source, kind="model", offline=offline)


def find_cached_tokenizer(folder: Path) -> Path:
    """Where `find_tokenizer_of` found or put it, whichever hub it asked; else `folder`."""
    sources: tuple[hub.Hub, ...] = ("hf", "modelscope")
    for source in sources:
        with suppress(ModelError):
            return find_tokenizer_of(folder, source=source, offline=True)
    return folder


def kind_of(folder: Path) -> Kind:
    """How the model in `folder` is laid out, by its config.json and its names of weights."""
    config = hub.read_config(folder)
    names: list[str] = config.get("architectures") or []
    if ARMO in names:
        return "armo"
    weights = _weight_names(folder)
    # one pickle tells its names only when it is loaded
    has_value_head = STARLING in names if weights is None else VALUE_HEAD in weights
    is_starling = has_value_head and config.get("model_type") == "llama"
    return "starling" if is_starling else "classifier"


def is_pickled(folder: Path) -> bool:
    """Whether the weights of `folder` are *.bin only."""
    return not any(folder.glob("*.safetensors")) and any(folder.glob(PICKLES))


def check_model_files(folder: Path) -> list[str]:
    """Notes on a folder with a reward model that can be loaded.

    Raises:
        RewardError: another architecture (a causal LM, code that comes with the checkpoint), or
            a classifier with several labels.
        ModelError: its weights are quantised.
    """
    config = hub.read_config(folder)
    check_quantization(config, "read", where=f"reward.model={folder}")
    if kind_of(folder) == "classifier":
        _check_classifier(folder, config)
    if not is_pickled(folder):
        return []
    return [
        f"the weights of reward.model={folder} are pickled (*.bin): they are read with "
        "weights_only, so that no code in them runs."
    ]


def _check_classifier(folder: Path, config: dict[str, Any]) -> None:
    names: list[str] = config.get("architectures") or []
    foreign = [name for name in names if not name.endswith(CLASSIFIER)]
    if foreign:
        raise RewardError(
            f"reward.model={folder} is a {foreign[0]}, and no reward model that can be loaded: "
            f"its head would be random.\nExpected ...{CLASSIFIER} with one label, {ARMO}, or "
            "Starling's layout. Other kinds can be served: --reward_model http://HOST/classify."
        )
    labels = config.get("id2label") or {}
    count = config.get("num_labels") or len(labels)
    if count > 1:
        raise RewardError(
            f"reward.model={folder} is a classifier with {count} labels "
            f"({', '.join(map(str, list(labels.values())[:3]))}); a reward model has one.\n"
            "Choose a model whose config.json has num_labels 1."
        )


def _download(name: str, source: hub.Hub) -> Path:
    try:
        folder = hub.fetch(name, hub.FILES, hub=source, kind="model")
    except ModelNotFoundError:
        # to the clients a cached copy without *.safetensors is not whole
        with suppress(ModelNotFoundError):
            cached = hub.fetch(name, PICKLED_FILES, hub=source, kind="model", offline=True)
            if any(cached.glob(PICKLES)):
                return cached
        raise
    if not any(folder.glob("*.json")):
        raise ModelNotFoundError(f"model {name} is empty: no config.json is in the repository.")
    if any(folder.glob("*.safetensors")):
        return folder
    folder = hub.fetch(name, PICKLED_FILES, hub=source, kind="model")
    if not any(folder.glob(PICKLES)):
        raise ModelError(
            f"model {name} has neither *.safetensors nor {PICKLES}: its weights are in a form that "
            "is not read.\nChoose another copy of it, or serve it: --reward_model "
            "http://HOST/classify."
        )
    return folder


def _weight_names(folder: Path) -> set[str] | None:
    """Names of all weights, from what tells them without loading; None: nothing does."""
    indices = [folder / f"{name}.index.json" for name in ("model.safetensors", "pytorch_model.bin")]
    whole = folder / "model.safetensors"
    with suppress(ValueError, KeyError):  # loading will name the broken file
        if whole.is_file():
            with whole.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                return set(json.loads(file.read(min(length, 100 * 2**20))))
        for index in indices:
            if index.is_file():
                return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    return None
