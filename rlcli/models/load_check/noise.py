"""Turn off train-mode noise, which the sampler in eval mode does not have."""

from __future__ import annotations

import operator
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from rlcli.errors import ModelError
from rlcli.models.load_check.probe import Probe, gap_between

Sums = tuple[float, ...]
"""Sum and absolute sum of each tensor of a call."""


def silence_noise(probe: Probe, own_PV: Tensor, gate: float) -> str | None:
    """Keep every module whose output differs in train mode in eval mode; returns a note.

    Modules that draw random numbers count even if the probe shows no difference.
    Raises: ModelError if the noise is in a whole decoder layer, or outside all modules.
    """
    model = probe.lm.model
    silenced: list[str] = []
    while True:
        gap, drawing = _train_pass(probe, own_PV)
        if gap <= gate and not drawing:
            break
        modules: dict[str, nn.Module] = dict(model.named_modules())
        around = [_outermost_quiet(name, modules) for name in drawing]
        name = next((n for n in around if not _holds_layers(modules[n])), None)
        if name is None:
            if gap <= gate:
                break  # a decoder that draws numbers for layer drop, but drops no layer
            name = _outermost_quiet(_first_different(probe), modules)
        kind = type(modules[name])
        if _holds_layers(modules[name]):
            raise ModelError(
                f"{type(model).__name__} computes something else in train mode than in eval mode, "
                f"in {name or 'its forward'} ({kind.__name__}): the policy that learns would not "
                "be the one that samples.\nTurn this layer's noise off in config.json."
            )
        for module in modules.values():
            if type(module) is kind:
                _keep_in_eval(module)
        silenced.append(f"{name} ({kind.__name__})")
    if not silenced:
        return None
    return (
        f"{type(model).__name__} draws noise in train mode, which the sampler does not have: it is "
        f"off in {', '.join(silenced)} and every other layer of that kind"
    )


def _outermost_quiet(name: str, modules: dict[str, nn.Module]) -> str:
    """The module, or its innermost parent that still follows the model into train mode."""
    while name and "train" in vars(modules[name]):
        name = name.rpartition(".")[0]
    return name


def _holds_layers(module: nn.Module) -> bool:
    """Whether `module` contains a decoder layer, whose mode gradient checkpointing reads."""
    is_model = isinstance(module, PreTrainedModel)
    return is_model or any(isinstance(m, GradientCheckpointingLayer) for m in module.modules())


def _train_pass(probe: Probe, own_PV: Tensor) -> tuple[float, list[str]]:
    """(gap caused by train mode, innermost modules that draw random numbers in it)."""
    model = probe.lm.model
    drawing: list[str] = []
    open_calls: list[tuple[Tensor, int]] = []

    def enter(*_: Any) -> None:
        open_calls.append((_random_state(model), len(drawing)))

    def leave(module: nn.Module, *_: Any) -> None:
        state, known = open_calls.pop()
        if len(drawing) == known and not torch.equal(state, _random_state(model)):
            drawing.append(names[module])

    names = {module: name for name, module in model.named_modules()}
    handles = [module.register_forward_pre_hook(enter) for module in names]
    handles += [module.register_forward_hook(leave) for module in names]
    try:
        with train_mode(model):
            gap = gap_between(probe.plain(), own_PV)
    finally:
        for handle in handles:
            handle.remove()
    return gap, drawing


@contextmanager
def train_mode(model: PreTrainedModel) -> Iterator[None]:
    """Train mode inside, eval mode afterwards."""
    model.train()
    try:
        yield
    finally:
        model.eval()


def _random_state(model: PreTrainedModel) -> Tensor:
    on_gpu = model.device.type == "cuda"
    return torch.cuda.get_rng_state(model.device) if on_gpu else torch.get_rng_state()


def _first_different(probe: Probe) -> str:
    """First module whose output differs in train mode for equal inputs; "" if there is none."""
    close = _is_close if probe.lm.device.type == "cuda" else operator.eq
    quiet = sums_of_calls(probe)
    with train_mode(probe.lm.model):
        noisy = sums_of_calls(probe)
    for name, (inputs, output) in noisy.items():
        known = quiet.get(name)
        if known and close(known[0], inputs) and not close(known[1], output):
            return name
    return ""


def sums_of_calls(probe: Probe) -> dict[str, tuple[Sums, Sums]]:
    """Module name -> sums of (inputs, outputs) of its first call, in the order the calls end."""
    input_sums: dict[str, Sums] = {}
    sums: dict[str, tuple[Sums, Sums]] = {}
    handles: list[Any] = []
    for name, module in probe.lm.model.named_modules():

        def enter(_: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            input_sums.setdefault(name, _sums((args, kwargs)))  # the call may modify them in place

        def leave(_: nn.Module, args: Any, output: Any, name: str = name) -> None:
            sums.setdefault(name, (input_sums[name], _sums(output)))

        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(module.register_forward_hook(leave))
    try:
        probe.plain()
    finally:
        for handle in handles:
            handle.remove()
    return sums


def _sums(value: Any) -> Sums:
    if isinstance(value, Tensor):
        exact = value.double()
        return (float(exact.sum()), float(exact.abs().sum()))
    items = value.values() if isinstance(value, dict) else value
    if isinstance(items, (list, tuple, types.GeneratorType)) or isinstance(value, dict):
        return tuple(number for item in items for number in _sums(item))
    return ()


def _is_close(one: Sums, other: Sums) -> bool:
    """Whether two sums are equal up to rounding: GPU sums are not reproducible bit for bit."""
    if len(one) != len(other):
        return False
    sizes = [max(abs(x) for x in one[i : i + 2]) for i in range(0, len(one), 2) for _ in range(2)]
    return all(abs(a - b) <= 1e-6 * size for a, b, size in zip(one, other, sizes, strict=True))


def _keep_in_eval(module: nn.Module) -> None:
    """Keep the module itself in eval mode; the modules inside it still follow the model."""
    module.train = types.MethodType(_train_inside, module)
    module.training = False


def _train_inside(module: nn.Module, mode: bool = True) -> nn.Module:
    type(module).train(module, mode)
    module.training = False
    return module
