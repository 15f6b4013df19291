"""Language models sharded with torch's FSDP2. Each rank reads only its rows of the weight files.

The model is built on the meta device, sharded, and only then given memory, so it is never whole on
a rank: not on the GPU, not in the machine's memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from rlcli.models.causal_lm import check_passes, read_model_config, set_up_layers
from rlcli.models.forward import CausalLM, local_part
from rlcli.models.load_check.finite import find_non_finite, non_finite_error
from rlcli.models.loading import choose_class, load_pretrained
from rlcli.models.weight_files import files_of_weights


class Root(nn.Module):
    """The FSDP root of a model. Its forward runs any computation on the model.

    Parts of a model are called by themselves here (the decoder, then the head in chunks); FSDP
    gathers weights only inside the forward of its root.
    """

    def __init__(self, model: nn.Module, device: torch.device, compute: torch.dtype | None) -> None:
        super().__init__()
        self.model, self.device, self.compute = model, device, compute

    def forward(self, compute: Callable[[], Any]) -> Any:
        """The result of `compute`: a tensor, a tuple of tensors and None, or anything without."""
        result = compute()
        if isinstance(result, tuple):
            return tuple(map(_cloned, result))
        return _cloned(result)


def _cloned(value: Any) -> Any:
    """A view would lose FSDP's backward hooks."""
    return value.clone() if isinstance(value, Tensor) else value


class ShardedWeights:
    """Maps each parameter of a model on the meta device to its key in the files, or a conversion.

    Made before adapters change the names of parameters.
    """

    def __init__(self, path: Path, model: PreTrainedModel, stack: ExitStack) -> None:
        self._path = path
        self._stored = dict(_open(path, stack))
        self._key: dict[int, str] = {}
        self._conversion: dict[int, tuple[WeightConverter, str, str]] = {}
        """By id of the parameter: the conversion, its first target and this target."""
        self._converted: tuple[WeightConverter | None, dict[str, Any]] = None, {}
        self._model = model
        tensors = model.state_dict(keep_vars=True)
        transforms = get_model_conversion_mapping(model)
        renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
        converters = [t for t in transforms if isinstance(t, WeightConverter)]
        by_pattern = {p: c for c in converters for p in c.source_patterns}
        found: dict[str, WeightConverter] = {}
        for key in sorted(self._stored, key=dot_natural_key):
            prefix = model.base_model_prefix
            name, pattern = rename_source_key(key, renamings, converters, prefix, tensors)
            if name not in tensors and key in tensors:
                name, pattern = rename_source_key(key, [], [], prefix, tensors)
            if name not in tensors:
                continue
            if pattern is None:
                self._key[id(tensors[name])] = key
                continue
            if name not in found:
                found[name] = deepcopy(by_pattern[pattern])

            def read(key: str = key) -> Tensor:  # called when the tensor is converted
                return self._stored[key][...]

            found[name].add_tensor(name, key, pattern, cast("Any", read))
        for first, converter in found.items():
            for pattern in converter.target_patterns:
                target = first.replace(converter.target_patterns[0], pattern)
                self._conversion[id(tensors[target])] = converter, first, target

    def tie_equal(self) -> None:
        """Tie weights that the configuration ties and the files store twice with equal values.

        transformers compares them while it loads, but not on the meta device.
        """
        tied = getattr(self._model, "all_tied_weights_keys", {})
        for target, source in tied.items():
            one = self._model.get_parameter(target)
            other = self._model.get_parameter(source)
            keys = self._key.get(id(one)), self._key.get(id(other))
            if one is other or None in keys:
                continue
            parts = [self._stored[key] for key in keys if key is not None]
            rows = range(0, one.shape[0], 1 + one.shape[0] // 16)
            step = rows.step
            if all(torch.equal(*(part[a : a + step] for part in parts)) for a in rows):
                parent, _, name = target.rpartition(".")
                setattr(self._model.get_submodule(parent), name, other)

    def find(self, model: nn.Module) -> dict[str, Callable[[int, int], Tensor]]:
        """By name in `model`, a function that reads rows start to stop of the stored tensor."""
        found: dict[str, Callable[[int, int], Tensor]] = {}
        saved = model.state_dict(keep_vars=True)
        for name, tensor in saved.items():
            if (key := self._key.get(id(tensor))) is not None:
                found[name] = lambda a, b, key=key: self._stored[key][a:b]
            elif (conversion := self._conversion.get(id(tensor))) is not None:
                found[name] = lambda a, b, c=conversion: self._convert(*c)[a:b]
        return found

    def _convert(self, converter: WeightConverter, first: str, target: str) -> Tensor:
        """A stored tensor of another form, whole: fused experts, for one."""
        if self._converted[0] is not converter:
            # a conversion reads its tensors once: a copy of it can be made again
            made = deepcopy(converter).convert(first, model=self._model, config=self._model.config)
            self._converted = converter, made
        value = self._converted[1][target]
        return value[0] if isinstance(value, list) else value


def _open(path: Path, stack: ExitStack) -> Iterator[tuple[str, Any]]:
    """(key, tensor to be indexed by rows) for every stored tensor."""
    for file in files_of_weights(path):
        if file.suffix == ".safetensors":
            tensors = stack.enter_context(safe_open(str(file), "pt"))
            keys = tensors.keys()
            yield from ((key, _Stored(tensors, key)) for key in keys)
        else:
            yield from torch.load(file, map_location="cpu", mmap=True, weights_only=True).items()


class _Stored:
    """Rows of a tensor of a safetensors file."""

    def __init__(self, tensors: Any, key: str) -> None:
        self._tensors, self._key = tensors, key

    def __getitem__(self, rows: Any) -> Tensor:
        if rows is Ellipsis or not self._tensors.get_slice(self._key).get_shape():
            return self._tensors.get_tensor(self._key)
        return self._tensors.get_slice(self._key)[rows]


def build_empty_lm(
    path: str,
    stack: ExitStack,
    *,
    dtype: torch.dtype,
    trust_remote_code: bool,
    needs_head: bool = True,
) -> tuple[CausalLM, ShardedWeights]:
    """A model whose parameters are on the meta device, and where its weights are stored.

    Its buffers have their values. stack: closes the files. Without `needs_head` it has no LM head.

    Raises: ModelError as `load_causal_lm`.
    """
    trust = trust_remote_code
    config = read_model_config(path, trust_remote_code=trust)
    model = load_pretrained(
        path, config, trust_remote_code=trust, needs_head=needs_head, dtype=dtype, device_map="meta"
    )
    _compute_buffers(model, dtype=dtype, trust_remote_code=trust)
    weights = ShardedWeights(Path(path), model, stack)
    weights.tie_equal()
    if not needs_head:
        model.set_output_embeddings(nn.Identity())
    return CausalLM(model=model, packed=False, source_dtype=config.dtype or dtype), weights


def _compute_buffers(
    model: PreTrainedModel, *, dtype: torch.dtype, trust_remote_code: bool
) -> None:
    """Give every buffer the value that the model's constructor computes: rotary frequencies."""
    if not any(buffer.is_meta for buffer in model.buffers()):
        return
    with init_empty_weights(include_buffers=False):
        built: Any = choose_class(model.config).from_config(
            model.config, dtype=dtype, trust_remote_code=trust_remote_code
        )
    for path, module in built.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            model.get_submodule(path)._buffers[name] = buffer


def shard(
    module: nn.Module,
    device: torch.device,
    *,
    compute: torch.dtype | None = None,
    offload: bool = False,
) -> Root:
    """`module` in shards over all ranks: each layer by itself, the rest together.

    compute: the dtype that weights are gathered and computed in, if not their own; gradients are
    added up in float32. offload: shards, gradients and optimizer states live in host memory.
    """
    kind: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (dist.get_world_size(),)),
        # the root too: outside its forward and backward, parameters are then always shards
        "reshard_after_forward": True,
    }
    if compute is not None:
        kind["mp_policy"] = MixedPrecisionPolicy(
            param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    if offload:
        kind["offload_policy"] = CPUOffloadPolicy(pin_memory=device.type == "cuda")
    for layer in find_layers(module):
        fully_shard(layer, **kind)
    root = Root(module, device, compute)
    fully_shard(root, **kind)
    for part in root.modules():
        if isinstance(part, FSDPModule):
            # losses are shares of a sum over all ranks. Not on the root alone: layers that still
            # take a mean train on with wrong gradients
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)  # gloo has no PREMUL_SUM (torch 2.13)
            if hasattr(part, "set_reduce_scatter_unused_params"):  # since torch 2.13
                # experts that no token of this rank went to have a gradient on another
                part.set_reduce_scatter_unused_params(True, recurse=False)
    place = torch.device("cpu") if offload else device
    root._apply(lambda t: torch.empty_like(t, device=place) if t.is_meta else t.detach().clone())
    return root


def find_layers(module: nn.Module) -> list[nn.Module]:
    """The layers of every stack in a model, without those that share a weight with another part."""
    total = Counter(id(p) for _, p in module.named_parameters(remove_duplicate=False))
    layers: list[nn.Module] = []
    for layer in _stacked(module):
        own = Counter(id(p) for _, p in layer.named_parameters(remove_duplicate=False))
        if own and all(total[key] == number for key, number in own.items()):
            layers.append(layer)
    return layers


def _stacked(module: nn.Module) -> Iterator[nn.Module]:
    """The layers in each module list of a model, those of nested lists one by one."""
    for child in module.children():
        if not isinstance(child, nn.ModuleList):
            yield from _stacked(child)
            continue
        for item in child:
            if isinstance(item, nn.ModuleList | nn.ModuleDict):
                yield from _stacked(nn.ModuleList([item]))
            else:
                yield item


def load_shards(
    lm: CausalLM,
    weights: ShardedWeights,
    module: nn.Module,
    device: torch.device,
    *,
    compute: torch.dtype | None = None,
    offload: bool = False,
    samples: bool = False,
) -> CausalLM:
    """`lm` with its weights in shards, read and checked. module: `lm.model` or what holds it.

    Parameters that the files do not have (adapters, a value head) must have their values.
    samples: whether the built-in sampler reads these weights.

    Raises: ModelError if a weight is missing or not finite, or as `prepare`.
    """
    read = weights.find(lm.model)
    lm.root = root = shard(module, device, compute=compute, offload=offload)
    with torch.no_grad():
        for name, tensor in lm.model.state_dict(keep_vars=True).items():
            if name in read:
                start, stop = rows_of(tensor)
                if tensor.dim() == 0 or stop > start:
                    local_part(tensor).copy_(read[name](start, stop))
    _refuse_non_finite(root, type(lm.model).__name__)
    set_up_layers(lm.model, device)
    root(lambda: check_passes(lm, samples=samples))
    return lm


def rows_of(tensor: Tensor) -> tuple[int, int]:
    """(start, stop) of this rank's rows; all rows of a tensor that is not sharded."""
    num_rows = tensor.shape[0] if tensor.dim() else 1
    if not isinstance(tensor, DTensor):
        return 0, num_rows
    size = -(-num_rows // dist.get_world_size())
    start = min(num_rows, size * dist.get_rank())
    return start, min(num_rows, start + size)


def gather_whole(
    tensor: Tensor, device: torch.device, *, dtype: torch.dtype | None = None
) -> Tensor:
    """A sharded tensor, whole on `device` on every rank, in `dtype`; all ranks take part."""
    if not isinstance(tensor, DTensor):
        return tensor.detach()
    local = local_part(tensor).detach().to(device, dtype)
    shape, stride = tensor.shape, tensor.stride()
    mesh, placements = tensor.device_mesh, tensor.placements
    sharded = DTensor.from_local(
        local, mesh, placements, run_check=False, shape=shape, stride=stride
    )
    return sharded.full_tensor()


def _refuse_non_finite(root: Root, name: str) -> None:
    """Raises: ModelError on all ranks if one has a value that is not finite."""
    own: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(own, find_non_finite(root.model))
    if found := next((problem for problem in own if problem), None):
        raise non_finite_error(name, found)
