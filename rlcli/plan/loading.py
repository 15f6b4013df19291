"""Memory needed to load the models.

Every process loads each model whole before sharding it. Under fsdp it loads only its shards; under
ZeRO stage 3 without the native sampler models are whole only in host memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlcli.config.schema import Config
from rlcli.plan.shapes import ModelShape
from rlcli.plan.states import FLOAT, HALF, Numerics, critic_parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """Bytes at the end of loading. device: of one process. host: of one process, while it reads
    its largest model into the machine's memory on the way to a GPU."""

    device: float
    host: float


def plan_loading(
    config: Config,
    numerics: Numerics,
    *,
    policy: ModelShape,
    critic: ModelShape | None,
    reward: ModelShape | None,
) -> Loading:
    """Bytes to load policy, sampler's copy, reference, critic and reward model.

    Each is whole on every rank, and loaded in the order of rlcli/trainer/build_engine.py.
    """
    if numerics.fsdp:
        return _plan_shards(config, numerics, policy=policy, critic=critic, reward=reward)
    shards = numerics.deepspeed and config.train.zero_stage > 0
    is_half = numerics.half and (shards or numerics.is_lora)
    trained = (HALF if is_half else FLOAT) * policy.parameters
    read = [trained]
    in_host_memory = shards and config.train.zero_stage == 3 and not config.rollout.is_native
    among = numerics.ranks if in_host_memory else 1
    copies = 0.0
    if config.rollout.is_native and numerics.half and not is_half:
        copies += HALF * policy.parameters
    elif config.rollout.is_native and shards and config.train.zero_stage == 3:
        copies += trained
    if config.algorithm.needs_reference and not numerics.is_lora:
        copies += trained / numerics.ranks
    if critic is not None:
        read.append(FLOAT * critic_parameters(critic))
        copies += read[-1] / among
    if reward is not None:
        read.append(numerics.width * reward.parameters)
        copies += read[-1]
    if in_host_memory:
        copies += FLOAT * largest_tensor(policy)
    if numerics.device != "cpu":
        return Loading(device=trained / among + copies, host=max(read))
    whole = max(read) * in_host_memory  # beside the shards of the models loaded before
    return Loading(device=trained / among + copies + whole, host=0.0)


def largest_tensor(shape: ModelShape) -> int:
    """Parameters of a model's largest tensor, counting experts separately."""
    return max(shape.embedding, shape.hidden * shape.intermediate)


def _plan_shards(
    config: Config,
    numerics: Numerics,
    *,
    policy: ModelShape,
    critic: ModelShape | None,
    reward: ModelShape | None,
) -> Loading:
    """Trained models and the reference in shards, the rest whole (engines/sharded_parts)."""
    width = numerics.width
    trained = (width if numerics.is_lora else FLOAT) * policy.parameters
    shared = trained
    if critic is not None:
        shared += FLOAT * critic_parameters(critic)
    reference = 0.0
    if config.algorithm.needs_reference and not numerics.is_lora:
        reference = width * policy.parameters
    whole = [width * policy.parameters] if config.rollout.is_native else []
    whole += [width * reward.parameters] if reward is not None else []
    # tensors are converted to the training dtype one at a time
    largest = FLOAT * largest_tensor(policy)
    share = (shared + reference) / numerics.ranks
    if numerics.device == "cpu":
        return Loading(device=share + sum(whole) + largest, host=0.0)
    on_host = shared * config.train.offloads
    on_host += reference * (config.train.offloads or config.ref.offload_params)
    on_host /= numerics.ranks
    device = share - on_host + sum(whole)
    return Loading(device=device, host=on_host + max([largest, *whole]))
