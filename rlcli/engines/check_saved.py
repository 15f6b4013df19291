"""Checks that a saved Hugging Face folder holds the whole model, and the policy it was made from.

transformers fills a weight it does not find with random numbers and only warns.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from rlcli.models.forward import CausalLM
from rlcli.models.load_check.probe import Probe, gap_between
from rlcli.models.loading import choose_class
from rlcli.models.weight_files import ADAPTER

MAX_GAP = 1e-4
"""Mean total variation of the next token's distribution that float32 rounding may make."""
MAX_ROUNDED_GAP = 0.25
"""The same for weights stored or computed in fewer bits: rounding sends some tokens to other
experts (0.035 in a random MoE in bfloat16), while a model with random weights is at 0.5 to 1."""
OF_BASE = tuple(
    f"{end}{base}.weight" for end in ("embed_tokens", "lm_head") for base in ("", ".base_layer")
)
"""Whole weights of the base that peft stores beside some adapters."""
EMBEDDINGS = (*OF_BASE, *(name.replace(".weight", ".modules_to_save.weight") for name in OF_BASE))


def problems(folder: Path, *, trust_remote_code: bool = False) -> Iterator[str]:
    """What keeps the folder from loading as the model (or the adapter) it says it is.

    Reads the headers against the model's class, built without memory for weights, then every
    weight for values that are not finite.
    """
    with quiet():
        check = adapter_problems if (folder / ADAPTER).is_file() else _model_problems
        try:
            found = list(check(folder, trust_remote_code))
        except Exception as error:  # transformers, peft and a model's own code raise what they like
            first = (str(error).splitlines() or [""])[0]
            found = [f"{folder} does not load: {type(error).__name__}: {first}"]
    yield from found or not_finite(folder)


@torch.no_grad()
def gap_to(
    folder: Path, policy: CausalLM, *, trust_remote_code: bool = False
) -> tuple[float, float]:
    """(distance between next-token distributions of the saved model and `policy`, its limit).

    The distance is the total variation, from 0 to 1, averaged over a few random tokens. The
    policy's device must have room for another copy of the model.
    """
    with quiet():
        model = _class_of(folder, trust_remote_code).from_pretrained(
            folder, dtype=policy.source_dtype, trust_remote_code=trust_remote_code
        )
    model = model.to(policy.device).eval()
    is_exact = model.dtype == policy.model.dtype == torch.float32
    saved = CausalLM(model=model.float(), packed=False, source_dtype=policy.source_dtype)
    was_training = policy.model.training
    policy.model.eval()
    try:
        gap = gap_between(Probe(saved).plain(), Probe(policy).trained()) / 2
    finally:
        policy.model.train(was_training)
    return gap, MAX_GAP if is_exact else MAX_ROUNDED_GAP


def _class_of(folder: Path, trust_remote_code: bool) -> Any:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    return choose_class(config)


def empty_model(config: Any, *, trust_remote_code: bool) -> Any:
    """The model of a config on the meta device: names and shapes without memory for weights."""
    with torch.device("meta"), quiet():
        return choose_class(config).from_config(config, trust_remote_code=trust_remote_code)


def _model_problems(folder: Path, trust: bool) -> Iterator[str]:
    _, found = _class_of(folder, trust).from_pretrained(
        folder,
        device_map="meta",
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        trust_remote_code=trust,
    )
    shapes = {name for name, *_ in found["mismatched_keys"]}
    yield from _misfits(folder, found["missing_keys"], found["unexpected_keys"], shapes)


def _misfits(folder: Path, missing: set[str], unknown: set[str], odd: set[str]) -> Iterator[str]:
    if missing:
        yield f"{folder} lacks weights: {_some(missing)}"
    if unknown:
        yield f"{folder} has weights that its model does not know: {_some(unknown)}"
    if odd:
        yield f"{folder} has weights of another shape than its model: {_some(odd)}"


def adapter_problems(folder: Path, trust: bool, base: Path | None = None) -> Iterator[str]:
    """What of an adapter does not fit its base, by the headers; `base`: where that is."""
    from peft import PeftConfig, get_peft_model_state_dict
    from peft.mapping_func import get_peft_model

    config = PeftConfig.from_pretrained(str(folder))
    base = base or Path(config.base_model_name_or_path or "")
    if not (base / "config.json").is_file():
        return  # nothing to compare with
    settings = AutoConfig.from_pretrained(base, trust_remote_code=trust)
    with torch.device("meta"):
        model = get_peft_model(empty_model(settings, trust_remote_code=trust), config)
    # without the base's own embeddings, which peft would look for on a hub
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    wanted = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    saved = _shapes(folder)
    rows = settings.get_text_config().vocab_size
    resized = [n for n, s in saved.items() if n.endswith(EMBEDDINGS) and s[0] > rows]
    if resized:
        yield (
            f"{resized[0]} has {saved[resized[0]][0]} rows, the base {rows}. Give the base as many "
            "(resize_token_embeddings), save it, and set base_model_name_or_path to that folder"
        )
        return
    yield from _misfits(
        folder,
        wanted.keys() - saved.keys(),
        {name for name in saved.keys() - wanted.keys() if not name.endswith(OF_BASE)},
        {name for name in wanted.keys() & saved.keys() if wanted[name] != saved[name]},
    )


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(str(file), "pt") as tensors:
            names = tensors.keys()
            shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
    return shapes


def not_finite(folder: Path) -> Iterator[str]:
    """The weights of a folder that hold a NaN or an infinity."""
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(str(file), "pt") as tensors:
                names = tensors.keys()
                for name in names:
                    if not tensors.get_tensor(name).isfinite().all():
                        yield f"{file} has values that are not finite in {name}"
        except SafetensorError as error:
            yield f"{file} cannot be read: {error}"


def _some(names: set[str]) -> str:
    return min(names) if len(names) == 1 else f"{min(names)}, ... ({len(names)})"


@contextmanager
def quiet() -> Iterator[None]:
    """Without the reports of transformers and peft on what does not fit: it is returned."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(before)
