"""The trained policy as a Hugging Face folder that transformers and vLLM load."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from rlcli.causal_lm import CausalLM


@contextmanager
def disk_errors() -> Iterator[None]:
    """A write that safetensors could not finish ends as the OSError it was."""
    try:
        yield
    except SafetensorError as error:
        number = errno.ENOSPC if "os error 28" in str(error) else errno.EIO
        raise OSError(number, str(error)) from error


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """One safetensors file. Raises: OSError when it cannot be written."""
    with disk_errors():
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


class TensorFiles:
    """Tensors by name, by the name of the safetensors file they are saved in."""

    def __init__(
        self, files: Mapping[str, Mapping[str, torch.Tensor]], *, is_copy: bool = False
    ) -> None:
        self._files, self._is_copy = dict(files), is_copy

    @property
    def num_bytes(self) -> int:
        """Of all tensors."""
        return sum(t.nbytes for tensors in self._files.values() for t in tensors.values())

    def copied(self) -> TensorFiles:
        """The same values in memory of the host that training does not touch."""
        if self._is_copy:
            return self
        return TensorFiles(
            {
                file: {name: _copied(tensor) for name, tensor in tensors.items()}
                for file, tensors in self._files.items()
            },
            is_copy=True,
        )

    def save(self, folder: Path) -> None:
        """Write each file into an existing folder, then let go of its tensors.

        Raises: OSError when one cannot be written.
        """
        while self._files:
            file, tensors = self._files.popitem()
            save_tensors(tensors, folder / f"{file}.safetensors")


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    # in a row here: the thread that writes computes nothing, its OpenMP threads would be others
    return tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)


Named = Iterator[tuple[str, torch.Tensor]]
Whole = Callable[[list[Any]], AbstractContextManager[Any]]
"""Inside, the given parameters are whole here. All ranks enter alike."""


def save_pretrained(
    policy: CausalLM,
    peft_model: PeftModel | None,
    folder: Path | None,
    tokenizer: Any,
    *,
    merge_lora: bool,
    whole: Whole | None = None,
) -> None:
    """Weights in the dtype the model came in, config, tokenizer; with LoRA the adapter.

    `merge_lora` writes a full model with the adapter merged into `folder/merged` besides. whole:
    of weights that are shared out among ranks; one layer at a time is put together, and kept in
    the host's memory by the rank that writes. folder None: this one only takes part.

    Raises: OSError when it cannot be written.
    """
    keep = partial(_kept, keeps=folder is not None, copies=whole is not None)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save_pretrained(folder)
    if peft_model is None:
        _save_full(policy, keep(_weights(policy.model, whole), policy.source_dtype), folder)
        return
    adapter = keep(_adapter(peft_model, whole))
    if folder is not None:
        with disk_errors():
            peft_model.save_pretrained(str(folder), state_dict=adapter)
    if merge_lora:
        merged = None
        if folder is not None:
            merged = folder / "merged"
            merged.mkdir(exist_ok=True)
            tokenizer.save_pretrained(merged)
        weights = _weights(peft_model.get_base_model(), whole)
        _save_full(policy, keep(weights, policy.source_dtype), merged)


def _together(tensors: list[Any], whole: Whole | None) -> AbstractContextManager[Any]:
    return nullcontext() if whole is None else whole(tensors)


def _adapter(peft_model: PeftModel, whole: Whole | None) -> Named:
    """What is trained, under the names that peft gives it."""
    for name, tensor in peft_model.state_dict(keep_vars=True).items():
        if tensor.requires_grad:
            with _together([tensor], whole):
                yield name, tensor


@torch.no_grad()
def _weights(model: nn.Module, whole: Whole | None) -> Named:
    """All weights under the names the plain model has; adapters are added to theirs in float32."""
    layers: dict[str, Any] = {
        f"{name}.base_layer.weight": module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }
    for name, tensor in model.state_dict(keep_vars=True).items():
        if ".lora_" in name:
            continue
        layer = layers.get(name)
        with _together([tensor] if layer is None else list(layer.parameters()), whole):
            if layer is not None:
                tensor = tensor.float() + layer.get_delta_weight("default").float()
            yield name.replace(".base_layer.", "."), tensor


def _kept(
    tensors: Named, dtype: torch.dtype | None = None, *, keeps: bool, copies: bool
) -> dict[str, torch.Tensor]:
    """The tensors, floating ones in `dtype`; tied ones stay one. Nothing where none are kept."""
    kept: dict[str, torch.Tensor] = {}
    tied: dict[int, torch.Tensor] = {}
    for name, tensor in tensors:
        if not keeps:
            continue
        if id(tensor) not in tied:
            place = "cpu" if copies else tensor.device
            wanted = dtype if dtype and tensor.is_floating_point() else tensor.dtype
            kept[name] = tensor.detach().to(place, wanted, copy=copies)
        else:
            kept[name] = tied[id(tensor)]
        if isinstance(tensor, nn.Parameter):  # it lives on: no other has its id
            tied[id(tensor)] = kept[name]
    return kept


def _save_full(policy: CausalLM, state: dict[str, torch.Tensor], folder: Path | None) -> None:
    if folder is None:
        return
    with disk_errors():
        policy.model.save_pretrained(folder, state_dict=state)
    # transformers notes the dtype the weights are held in, not the one they are saved in
    config = folder / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings["dtype"] = str(policy.source_dtype).removeprefix("torch.")
    config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
