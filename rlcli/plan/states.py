"""Bytes that persist from step to step: weights, gradients, Adam moments, model copies."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rlcli.config.schema import Config
from rlcli.plan.shapes import ModelShape

FLOAT, HALF = 4, 2
MOMENTS = 2 * FLOAT


@dataclass(frozen=True, slots=True, kw_only=True)
class Numerics:
    """Precision and sharding of a run. ranks: processes that share states.

    deepspeed, fsdp: the engines that shard states; otherwise every process holds all of them.
    """

    half: bool
    lora_rank: int
    deepspeed: bool
    ranks: int
    device: str
    fsdp: bool = False

    @property
    def is_sharded(self) -> bool:
        """Whether processes share states."""
        return self.deepspeed or self.fsdp

    @property
    def width(self) -> int:
        """Bytes of one number in the linear layers."""
        return HALF if self.half else FLOAT

    @property
    def is_lora(self) -> bool:
        """Whether only adapters are trained."""
        return self.lora_rank > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedStates:
    """Bytes of one trained model on one device, and in the host's memory."""

    weights: float
    gradients: float
    optimizer: float
    host: float = 0.0

    @property
    def device(self) -> float:
        """Everything on the device."""
        return self.weights + self.gradients + self.optimizer


def num_processes(config: Config, devices: int) -> int:
    """Processes of a run with `devices` available on each machine."""
    return (config.train.n_gpus or devices) * config.train.nnodes


def gathered_bytes(shape: ModelShape, numerics: Numerics, *, trains: bool = True) -> float:
    """Bytes that fsdp gathers: the current and next layer, weights outside layers, gradients."""
    if not numerics.fsdp:
        return 0.0
    layer, outside = shape.layer_parameters(), shape.embedding + shape.head
    whole = numerics.width * (outside + 2 * layer)
    has_gradients = trains and not numerics.is_lora
    return whole + (numerics.width + FLOAT) * layer * has_gradients


def numerics_of(config: Config, *, device: str, devices: int) -> Numerics:
    """Precision and sharding that `model.dtype`, `lora.rank` and the engine give on `device`."""
    train = config.train
    ranks = num_processes(config, devices)
    deepspeed, fsdp = train.engine == "deepspeed", train.engine == "fsdp"
    dtype = config.model.dtype
    return Numerics(
        half=dtype == "bfloat16" or (dtype == "auto" and device == "cuda"),
        lora_rank=config.lora.rank,
        deepspeed=deepspeed,
        ranks=ranks if deepspeed or fsdp else 1,
        device=device,
        fsdp=fsdp,
    )


def adapters(shape: ModelShape, config: Config) -> int:
    """Number of parameters of the LoRA adapters."""
    return shape.adapter_parameters(config.lora.rank, config.lora.targets)


def critic_parameters(shape: ModelShape) -> int:
    """Parameters of a critic of this shape: a value head instead of the LM head."""
    return shape.parameters - shape.head + shape.hidden + 1


def policy_states(shape: ModelShape, config: Config, numerics: Numerics) -> TrainedStates:
    """States of the policy: all weights trained, or adapters on frozen weights."""
    if not numerics.is_lora:
        return trained_states(shape.parameters, config, numerics)
    count = adapters(shape, config)
    adapter_states = trained_states(count, config, numerics)
    frozen = shape.parameters * numerics.width
    shares = numerics.fsdp or (numerics.deepspeed and config.train.zero_stage == 3)
    shards = numerics.ranks if shares else 1
    if numerics.fsdp and config.train.offloads:
        return replace(adapter_states, host=adapter_states.host + frozen / shards)
    return TrainedStates(
        weights=adapter_states.weights + frozen / shards,
        gradients=adapter_states.gradients,
        optimizer=adapter_states.optimizer,
        host=adapter_states.host,
    )


def trained_states(count: int, config: Config, numerics: Numerics) -> TrainedStates:
    """States of `count` trained parameters under the run's engine.

    torch keeps float32 weights, gradients and moments: 16 bytes per parameter. DeepSpeed in
    bfloat16 keeps 2 + 2 (stages 2 and 3: 4) for weights and gradients, and 12 for a float32 copy
    and the moments; otherwise it keeps 16. fsdp shards torch's 16, all on the device or the host.
    """
    if numerics.fsdp:
        sizes = [count * size / numerics.ranks for size in (FLOAT, FLOAT, MOMENTS)]
        if config.train.offloads:
            return TrainedStates(weights=0.0, gradients=0.0, optimizer=0.0, host=sum(sizes))
        return TrainedStates(weights=sizes[0], gradients=sizes[1], optimizer=sizes[2])
    if not numerics.deepspeed:
        return TrainedStates(
            weights=FLOAT * count, gradients=FLOAT * count, optimizer=MOMENTS * count
        )
    train = config.train
    shards = [numerics.ranks if train.zero_stage >= stage else 1 for stage in (3, 2, 1)]
    gradient = FLOAT if train.zero_stage > 1 or not numerics.half else HALF
    each = (HALF, gradient, FLOAT + MOMENTS) if numerics.half else (FLOAT, gradient, MOMENTS)
    weights, gradients, optimizer = (
        count * size / among for size, among in zip(each, shards, strict=True)
    )
    host = optimizer * train.offload_optimizer + weights * train.offload_params
    return TrainedStates(
        weights=0.0 if train.offload_params else weights,
        gradients=gradients,
        optimizer=0.0 if train.offload_optimizer else optimizer,
        host=host,
    )
