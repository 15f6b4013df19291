"""The trained policy as a Hugging Face folder that transformers and vLLM load."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from rlcli.engines.check_saved import gap_to, problems
from rlcli.engines.merge import Named, Whole, gather, plain_weights
from rlcli.errors import TrainingError
from rlcli.models.causal_lm import CausalLM
from rlcli.models.weight_files import MERGED
from rlcli.system.hardware import free_ram


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

    def save(self, folder: Path) -> dict[str, str]:
        """Write each file into an existing folder, then let go of its tensors.

        Raises: OSError when one cannot be written.
        """
        while self._files:
            file, tensors = self._files.popitem()
            save_tensors(tensors, folder / f"{file}.safetensors")
        return {}


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    # in a row here: the thread that writes computes nothing, its OpenMP threads would be others
    return tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)


SIDE_FILES = ("*.json", "*.jinja", "*.py", "*.txt", "*.model", "*.tiktoken", "LICENSE*", "NOTICE*")
"""Files of a model folder besides weights: processor, chat template, code, vocabulary, license."""
NOT_COPIED = (
    *("config.json", "*.index.json", "adapter_*.json", "manifest.json", "requirements*.txt"),
    *("trainer_state.json", "*_results.json"),
)


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

    Files of the start model that hold no weights are copied, and what was written is read back.

    merge_lora: also write the full model with the adapter merged in to `folder/merged`. whole:
    gathers weights that are sharded over ranks, a layer at a time; the rank that writes keeps
    them in host memory. folder None: this rank only takes part in gathering.

    Raises: OSError when it cannot be written; TrainingError when it does not hold the policy.
    """
    keep = partial(_kept, keeps=folder is not None, copies=whole is not None)
    if folder is not None:
        _begin(folder, policy, tokenizer)
    if peft_model is None:
        _save_full(policy, keep(plain_weights(policy.model, whole), policy.source_dtype), folder)
    else:
        adapter = keep(_adapter(peft_model, whole))
        if folder is not None:
            with disk_errors():
                peft_model.save_pretrained(str(folder), state_dict=adapter)
    merged = None
    if peft_model is not None and merge_lora:
        if folder is not None:
            merged = folder / MERGED
            _begin(merged, policy, tokenizer)
        weights = plain_weights(peft_model.get_base_model(), whole)
        _save_full(policy, keep(weights, policy.source_dtype), merged)
    if folder is not None:
        check_saved(folder, policy, is_adapter=peft_model is not None, compares=whole is None)
    if merged is not None:
        check_saved(merged, policy, is_adapter=False, compares=whole is None)


def _begin(folder: Path, policy: CausalLM, tokenizer: Any) -> None:
    """The folder with everything that needs no trained weight: tokenizer, processor, own code."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    source = Path(policy.model.name_or_path or "")
    for pattern in SIDE_FILES if policy.model.name_or_path and source.is_dir() else ():
        for file in source.glob(pattern):
            is_new = file.is_file() and not (folder / file.name).exists()
            if is_new and not any(file.match(name) for name in NOT_COPIED):
                shutil.copyfile(file, folder / file.name)


def check_saved(folder: Path, policy: CausalLM, *, is_adapter: bool, compares: bool) -> None:
    """Read the folder back. Raises: TrainingError when it does not hold the policy.

    compares: also load it and compare what it predicts, where memory for it is free.
    """
    trust = type(policy.model).__module__.startswith("transformers_modules")
    found = next(problems(folder, trust_remote_code=trust), None)
    if found is None and compares and not is_adapter and _fits(policy):
        gap, limit = gap_to(folder, policy, trust_remote_code=trust)
        if not gap <= limit:
            found = (
                f"{folder} loads as another model: next-token probabilities differ by {gap:.2g} "
                f"(total variation), where rounding explains {limit:g}"
            )
    if found is not None:
        raise TrainingError(
            f"the saved model is wrong: {found}.\nPlease report this with the model's name."
        )


def _fits(policy: CausalLM) -> bool:
    """Whether a float32 copy of the model, and half as much again, fits beside it."""
    need = 6 * policy.model.num_parameters()
    if policy.device.type == "cuda":
        return torch.cuda.mem_get_info(policy.device)[0] > need
    return free_ram() > need


def _adapter(peft_model: PeftModel, whole: Whole | None) -> Named:
    """What is trained, under the names that peft gives it."""
    for name, tensor in peft_model.state_dict(keep_vars=True).items():
        if tensor.requires_grad:
            with gather([tensor], whole) as complete:
                yield name, complete(tensor)


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
    config = folder / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    # transformers notes the dtype the weights are held in, not the one they are saved in
    settings["dtype"] = str(policy.source_dtype).removeprefix("torch.")
    if _has_own_head(policy.model, state):
        for part in (settings, settings.get("text_config")):
            if part is not None:
                part["tie_word_embeddings"] = False
    config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _has_own_head(model: Any, state: dict[str, torch.Tensor]) -> bool:
    """Whether the weights of the LM head and of the embedding are saved, and differ."""
    paths = {id(module): path for path, module in model.named_modules()}
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    ours = [state.get(f"{paths.get(id(end))}.weight") for end in ends]
    embedding, head = ours
    if embedding is None or head is None or embedding is head:
        return False
    return embedding.shape != head.shape or not torch.equal(embedding, head)
