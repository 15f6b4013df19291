"""Disk space that a run needs, computed from the model's files and checked against free space."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlcli.config.resolved import Resolved
from rlcli.config.schema import Config
from rlcli.errors import ConfigError
from rlcli.system.disk import GIB, folder_bytes, free_bytes, gib

WEIGHT_BYTES, STATE_BYTES = 4, 12
"""Bytes of one trained weight in float32: alone, and in a checkpoint with two Adam moments."""
NOT_LINEAR = ("embed", "wte", "wpe", "lm_head", "norm")


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskNeed:
    """Bytes of one checkpoint and of the final model."""

    checkpoint: int
    final: int


def need_of(
    config: Config, *, weights: int, stored: int, adapters: int, critic: int = 0
) -> DiskNeed:
    """Disk need for a policy of `weights` parameters and a critic of `critic` parameters.

    stored: bytes of the original model's files. adapters: parameters of LoRA adapters on it.
    """
    trained, final = weights, stored
    if config.lora.rank:
        trained = adapters
        final = WEIGHT_BYTES * adapters + (stored if config.run.merge_lora else 0)
    return DiskNeed(checkpoint=STATE_BYTES * (trained + critic), final=final)


def most_at_once(config: Config, need: DiskNeed) -> int:
    """Bytes of the kept checkpoints, the one being written, and the final model."""
    run = config.run
    best = 1 if config.data.val and run.save_every != -1 else 0
    kept = (1 if run.save_every == -1 else run.keep_checkpoints) + best + 1
    total = need.checkpoint * kept + need.final
    if run.disk_budget is None:
        return total
    # the budget reduces the kept checkpoints, but at least one is kept
    return int(max(min(total, run.disk_budget * GIB), need.checkpoint + need.final))


def disk_need(config: Config, model_dir: Path, critic_dir: Path | None) -> DiskNeed | None:
    """Disk need from the headers of the model's weight files; None if there are none."""
    tensors = _tensors(model_dir)
    if not tensors:
        return None
    critic = _tensors(critic_dir) if critic_dir is not None else {}
    return need_of(
        config,
        weights=_weights(tensors),
        stored=sum(size for _, size in tensors.values()),
        adapters=_adapter_weights(tensors, config) if config.lora.rank else 0,
        critic=_weights({k: v for k, v in critic.items() if not k.startswith("lm_head")}),
    )


Tensors = dict[str, tuple[list[int], int]]
"""Name -> (shape, bytes)."""


def _tensors(folder: Path) -> Tensors:
    """The tensors of a model's safetensors files, read from their headers alone."""
    tensors: Tensors = {}
    for path in _weight_files(folder):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            try:
                header: dict[str, Any] = json.loads(file.read(min(length, 100 * 2**20)))
            except ValueError:
                continue  # loading reports the broken file
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            tensors[name] = (entry["shape"], end - begin)
    return tensors


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return [folder / name for name in sorted(names) if (folder / name).is_file()]
    whole = folder / "model.safetensors"
    return [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))


def _weights(tensors: Tensors) -> int:
    return sum(math.prod(shape) for shape, _ in tensors.values())


def _adapter_weights(tensors: Tensors, config: Config) -> int:
    """Adapter parameters: rank x (in + out) per matrix with an adapter."""
    targets = config.lora.targets
    total = 0
    for name, (shape, _) in tensors.items():
        module = name.removesuffix(".weight")
        is_linear = len(shape) == 2 and not any(word in name for word in NOT_LINEAR)
        if is_linear and (isinstance(targets, str) or module.endswith(tuple(targets))):
            total += config.lora.rank * sum(shape)
    return total


def check_disk(resolved: Resolved, need: DiskNeed, path: Path) -> None:
    """Raises: ConfigError if one checkpoint and the final model do not fit on `path`'s disk."""
    total = need.checkpoint + need.final
    need_text = (
        f"the run needs {gib(total)}: a checkpoint of {gib(need.checkpoint)} (weights and two "
        f"Adam moments in float32) and the final model of {gib(need.final)}."
    )
    cure = "" if resolved.config.lora.rank else "Or train adapters: lora.rank=16."
    budget = resolved.config.run.disk_budget
    if budget is not None and total > budget * GIB:
        enough = math.ceil(total / GIB * 100) / 100
        raise ConfigError(
            f"{resolved.where('run.disk_budget')} is too few GiB: {need_text}\n"
            f"Raise run.disk_budget to {enough:.2f} or more. {cure}".rstrip()
        )
    free = free_bytes(path) + folder_bytes(path / "checkpoints")
    if total > free:
        raise ConfigError(
            f"{path} has {gib(free)} of disk left; {need_text}\n"
            f"Free some space, or choose another --output_dir. {cure}".rstrip()
        )
