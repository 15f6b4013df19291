"""Checks of a model folder's files that read no weights and import no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from rlcli.errors import ModelError

Use = Literal["train", "adapters", "read"]
"""Train all weights, train adapters on frozen weights, or only read the weights."""
WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MERGED = "merged"
"""Folder inside an adapter's folder for the model with the adapter merged in."""
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
OTHER_LAYOUTS = ("*.safetensors", "*.gguf", "*.bin", "*.pth", "*.pt", "*.h5", "*.msgpack")
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors format."""
TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken")
DEQUANTISED_BY = {"mxfp4": "Mxfp4Config", "fp8": "FineGrainedFP8Config"}
"""Method -> config class, for methods that transformers 5.24 can dequantise on any machine."""


def check_pointers(folder: Path) -> None:
    """Raises: ModelError if a config, tokenizer or weight file is a git-lfs pointer."""
    patterns = ("*.json", "*.safetensors", "*.bin", *TOKENIZER_FILES)
    files = {file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
    pointers = sorted(file.name for file in files if _is_pointer(file))
    if pointers:
        others = f" (and {len(pointers) - 1} more)" if len(pointers) > 1 else ""
        raise ModelError(
            f"{folder / pointers[0]}{others} is a git-lfs pointer, not the file itself.\n"
            f"Type: cd {folder} && git lfs install && git lfs pull"
        )


def _is_pointer(file: Path) -> bool:
    if file.stat().st_size > 1024:
        return False
    return file.read_bytes().startswith(LFS_POINTER)


def has_weight_files(folder: Path) -> bool:
    """Whether any file of weights lies in `folder`."""
    return any(True for pattern in OTHER_LAYOUTS for _ in folder.glob(pattern))


def check_weight_files(folder: Path) -> None:
    """Raises: ModelError if weight files are missing or truncated."""
    if (folder / WEIGHTS).is_file():
        _check_header(folder / WEIGHTS)
    elif (folder / INDEX).is_file():
        for shard in _shards(folder, INDEX):
            _check_header(shard)
    elif (folder / PICKLED[1]).is_file() and not (folder / PICKLED[0]).is_file():
        _shards(folder, PICKLED[1])
    elif not (folder / PICKLED[0]).is_file():
        raise _no_weights(folder)


def files_of_weights(folder: Path) -> list[Path]:
    """The files with a model's weights, in transformers' order of preference."""
    for whole, index in ((WEIGHTS, INDEX), PICKLED):
        if (folder / whole).is_file():
            return [folder / whole]
        if (folder / index).is_file():
            return _shards(folder, index)
    raise _no_weights(folder)


def check_adapter_file(folder: Path) -> None:
    """Raises: ModelError if an adapter's folder has no readable weight file."""
    file = folder / ADAPTER_WEIGHTS
    if file.is_file():
        _check_header(file)
        return
    if (pickled := file.with_suffix(".bin")).is_file():
        raise ModelError(
            f"adapter {folder} has {pickled.name}, which is not read: expected {file.name}.\n"
            "Load it with peft, and save it again: PeftModel.from_pretrained(BASE, "
            f"{str(folder)!r}).save_pretrained(DIR)"
        )
    raise ModelError(f"adapter {folder} has no {file.name}.\nDownload that file into this folder.")


def _no_weights(folder: Path) -> ModelError:
    shards = sorted(file.name for file in folder.glob("*.safetensors"))
    if any(re.search(r"-\d+-of-\d+\.", name) for name in shards):
        return ModelError(
            f"{folder} has {len(shards)} shards of weights but no {INDEX}.\n"
            "Download that file from the model's repository into this folder."
        )
    other_files = sorted({file.name for p in OTHER_LAYOUTS for file in folder.glob(p)})
    there = f" It has {', '.join(other_files[:3])}." if other_files else ""
    return ModelError(
        f"{folder} has no weights: expected {WEIGHTS}, or {INDEX} and the files it names.{there}\n"
        "Download the model's *.safetensors files into this folder."
    )


def _shards(folder: Path, index: str) -> list[Path]:
    """The files that an index names. Raises: ModelError."""
    file = folder / index
    try:
        names = sorted(set(json.loads(file.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{file} is not an index of weights: no weight_map can be read from it.\n"
            "Download it again from the model's repository."
        ) from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"{file} names {len(names)} files of weights, and {len(missing)} are not in the "
            f"folder: {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}.\n"
            "Download them from the model's repository into this folder."
        )
    return [folder / name for name in names]


def _check_header(file: Path) -> None:
    """Raises: ModelError if a file is not safetensors, or shorter than its header states."""
    size = file.stat().st_size
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER_BYTES, max(size - 8, 0)):
                raise ValueError
            header = json.loads(opened.read(length))
        ends = [info["data_offsets"][1] for name, info in header.items() if name != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(
            f"{file} is not a safetensors file: its header cannot be read ({size:,} bytes).\n"
            "Download it again; the download may have stopped, or returned an error page."
        ) from error
    if size < expected:
        raise ModelError(
            f"{file} is cut off: it has {size:,} bytes, and its header describes {expected:,}.\n"
            "Download it again."
        )


def quantization_of(config: Mapping[str, Any]) -> str | None:
    """The quantisation method in the values of a config.json; None if not quantised.

    bitsandbytes comes as "bitsandbytes_4bit" or "bitsandbytes_8bit".
    """
    text = config.get("text_config")
    for values in (config, text if isinstance(text, Mapping) else {}):
        settings = values.get("quantization_config") or values.get("compression_config")
        if isinstance(settings, Mapping):
            return _method(settings)
    return None


def _method(settings: Mapping[str, Any]) -> str:
    method = str(settings.get("quant_method") or "").lower()
    is_4bit, is_8bit = settings.get("load_in_4bit"), settings.get("load_in_8bit")
    if method.startswith("bitsandbytes") or (not method and (is_4bit or is_8bit)):
        return "bitsandbytes_8bit" if is_8bit and not is_4bit else "bitsandbytes_4bit"
    return method or "an unknown method"


def check_merge(config: Mapping[str, Any], *, where: str) -> None:
    """Raises: ModelError if adapters cannot be merged into these weights without loss."""
    method = quantization_of(config)
    if method is not None:
        raise ModelError(
            f"{where} is quantised ({method}), so an adapter cannot be merged into it without "
            "loss.\nKeep the adapter as it is: run.merge_lora=false, or export without "
            "--merge-lora. Merge it into the model that was quantised."
        )


def check_quantization(config: Mapping[str, Any], use: Use, *, where: str) -> None:
    """Raises: ModelError if quantised weights do not support this use.

    where: the setting that names the model. bitsandbytes weights support reading and training of
    adapters, if bitsandbytes is installed.
    """
    method = quantization_of(config)
    if method is None:
        return
    is_bnb = method.startswith("bitsandbytes")
    if is_bnb and use != "train":
        if find_spec("bitsandbytes") is not None:
            return
        raise ModelError(
            f"{where} is quantised ({method}), and bitsandbytes is not installed.\n"
            "Type: pip install bitsandbytes, or use the model that was quantised."
        )
    if is_bnb:
        cure = "Use the model that was quantised, or train adapters on this one: lora.rank=16."
    elif method in DEQUANTISED_BY:
        cure = (
            "Use a bfloat16 copy of it, or make one: AutoModelForCausalLM.from_pretrained(MODEL, "
            f"quantization_config={DEQUANTISED_BY[method]}(dequantize=True), dtype='bfloat16')"
            ".save_pretrained(DIR), and copy its tokenizer to DIR."
        )
    else:
        cure = "Use the model that was quantised: its name has no GPTQ, AWQ, FP8 or Int4 in it."
    raise ModelError(
        f"{where} is quantised ({method}); expected bfloat16, float16 or float32 weights.\n{cure}"
    )


def positions_of(config: Mapping[str, Any]) -> int | None:
    """Maximum token positions of the model that a config.json describes; None if unknown.

    With YaRN as set by Qwen's model cards, max_position_embeddings is the original length, and the
    model has original_max_position_embeddings x factor positions. A configuration with one
    rope for each type of layer (Gemma 3) has the extended length in max_position_embeddings.
    """
    text = config.get("text_config")
    values = {**config, **text} if isinstance(text, Mapping) else config
    positions = values.get("max_position_embeddings")
    if not isinstance(positions, int):
        return None
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    nested = [part for part in rope.values() if isinstance(part, Mapping)]
    reached = [_rope_positions(part, values, positions, is_whole=False) for part in nested]
    if not nested:
        reached = [_rope_positions(rope, values, positions, is_whole=True)]
    return max([positions, *reached])


def _rope_positions(
    rope: Mapping[str, Any], values: Mapping[str, Any], positions: int, *, is_whole: bool
) -> int:
    """Positions that one rope setting extends to; 0 if it extends nothing."""
    kind = rope.get("rope_type") or rope.get("type")
    factor = rope.get("factor")
    original = rope.get("original_max_position_embeddings") or values.get(
        "original_max_position_embeddings"
    )
    if not isinstance(factor, int | float):
        return 0
    if original:
        return int(original * factor)
    # transformers uses max_position_embeddings if there is no original length
    return int(positions * factor) if kind in ("yarn", "linear", "dynamic") and is_whole else 0
