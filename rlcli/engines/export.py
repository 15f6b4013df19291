"""The trained policy as a Hugging Face folder that transformers and vLLM load."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import save_file

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


def save_pretrained(
    policy: CausalLM,
    peft_model: PeftModel | None,
    folder: Path,
    tokenizer: Any,
    *,
    merge_lora: bool,
) -> None:
    """Weights in the dtype the model came in, config, tokenizer; with LoRA the adapter.

    `merge_lora` writes a full model with the adapter merged into `folder/merged` besides.

    Raises: OSError when it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    if peft_model is None:
        _save_full(policy, policy.model.state_dict(), folder)
        return
    with disk_errors():
        peft_model.save_pretrained(str(folder))
    if merge_lora:
        merged = folder / "merged"
        merged.mkdir(exist_ok=True)
        tokenizer.save_pretrained(merged)
        _save_full(policy, _merged_state(peft_model), merged)


@torch.no_grad()
def _merged_state(peft_model: PeftModel) -> dict[str, torch.Tensor]:
    """Merged weights under the names the plain model has, added up in float32."""
    base = peft_model.get_base_model()
    state = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in base.state_dict().items()
        if ".lora_" not in name
    }
    for name, module in base.named_modules():
        if isinstance(module, LoraLayer):
            layer: Any = module
            delta = layer.get_delta_weight("default")
            state[f"{name}.weight"] = state[f"{name}.weight"].float() + delta.float()
    return state


def _save_full(policy: CausalLM, state: dict[str, torch.Tensor], folder: Path) -> None:
    model, dtype = policy.model, policy.source_dtype
    cast = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    with disk_errors():
        model.save_pretrained(folder, state_dict=cast)
    # transformers notes the dtype the weights are held in, not the one they are saved in
    config = folder / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings["dtype"] = str(dtype).removeprefix("torch.")
    config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
