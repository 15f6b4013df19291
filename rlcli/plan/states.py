"""Bytes that stay from step to step: weights, gradients, Adam moments, copies of the model."""

from __future__ import annotations

from dataclasses import dataclass

from rlcli.config.schema import Config
from rlcli.plan.shapes import ModelShape

FLOAT, HALF = 4, 2
MOMENTS = 2 * FLOAT


@dataclass(frozen=True, slots=True, kw_only=True)
class Numerics:
    """How a run computes. width: bytes of a computed number. ranks: processes that share states.

    deepspeed: the engine that shards; otherwise torch in one process.
    """

    half: bool
    lora_rank: int
    deepspeed: bool
    ranks: int
    device: str

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


def numerics_of(config: Config, *, device: str, devices: int) -> Numerics:
    """What `model.dtype`, `lora.rank` and the engine come to on this device."""
    train = config.train
    ranks = (train.n_gpus or devices) * train.nnodes
    deepspeed = train.engine == "deepspeed"
    wanted = config.model.dtype
    return Numerics(
        half=wanted == "bfloat16" or (wanted == "auto" and device == "cuda"),
        lora_rank=config.lora.rank,
        deepspeed=deepspeed,
        ranks=ranks if deepspeed else 1,
        device=device,
    )


def adapters(shape: ModelShape, config: Config) -> int:
    """Parameters of the LoRA adapters."""
    return shape.adapter_parameters(config.lora.rank, config.lora.targets)


def critic_parameters(shape: ModelShape) -> int:
    """Of a critic on this body: no LM head, a value head instead."""
    return shape.parameters - shape.head + shape.hidden + 1


def policy_states(shape: ModelShape, config: Config, numerics: Numerics) -> TrainedStates:
    """Of the policy: all its weights trained, or adapters on frozen ones."""
    if not numerics.is_lora:
        return trained_states(shape.parameters, config, numerics)
    count = adapters(shape, config)
    some = trained_states(count, config, numerics)
    frozen = shape.parameters * numerics.width
    shards = numerics.ranks if numerics.deepspeed and config.train.zero_stage == 3 else 1
    return TrainedStates(
        weights=some.weights + frozen / shards,
        gradients=some.gradients,
        optimizer=some.optimizer,
        host=some.host,
    )


def trained_states(count: int, config: Config, numerics: Numerics) -> TrainedStates:
    """Of `count` trained parameters under the run's engine.

    torch keeps float32 weights, gradients and moments, 16 bytes in all. So does DeepSpeed: in
    bfloat16 it has 2 + 2 (stages 2 and 3: 4) for weights and gradients, and 12 for a float32 copy
    and the moments.
    """
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
