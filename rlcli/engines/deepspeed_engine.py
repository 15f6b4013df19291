"""The DeepSpeed engine: gradients, optimizer states and weights shared out among the ranks.

The passes, losses and micro-batches are the torch engine's; DeepSpeed keeps the shards. Every
pass of a trained model goes through its DeepSpeed engine, and all ranks make as many: sharded
weights are gathered by all together. A checkpoint is gathered: it has the torch engine's files.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from types import ModuleType
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlcli.config.schema import TrainConfig
from rlcli.distributed.collectives import Ranks
from rlcli.engines.critic import Critic
from rlcli.engines.merge import Whole
from rlcli.engines.optimizer import MOMENTS, NamedParameters, Updater
from rlcli.engines.torch_engine import TorchEngine
from rlcli.errors import TrainingError
from rlcli.models.causal_lm import CausalLM

T = TypeVar("T")
GATHERED_AT_ONCE = 12
"""Parameters that are whole on every rank at one time."""


@cache
def load_deepspeed(device_type: str) -> ModuleType:
    """The package for one kind of device; quiet, and without a part it would compile on a CPU."""
    os.environ["DS_ACCELERATOR"] = device_type  # it would take any GPU that is there
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if device_type == "cpu":
        sys.modules["deepspeed.comm.torch"].__dict__["build_shm_op"] = lambda: None
    return deepspeed


def settings_of(train: TrainConfig, *, grad_clip: float, half: bool) -> dict[str, Any]:
    """DeepSpeed's configuration. A step ends when it is told to, after any number of passes.

    half: weights in bfloat16, with float32 ones beside the moments. Gradients are added up in
    float32 where they are in shares: whole ones, in stage 1, would take as much again.
    """
    zero: dict[str, Any] = {"stage": train.zero_stage, "memory_efficient_linear": False}
    if train.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    if train.offload_params and train.zero_stage == 3:
        zero["offload_param"] = {"device": "cpu"}
    in_float32 = {"grad_accum_dtype": "fp32"} if half and train.zero_stage > 1 else {}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": grad_clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
        "bf16": {"enabled": half},
        "data_types": in_float32,
    }


class Root(nn.Module):
    """The module that DeepSpeed wraps. Its forward runs any computation on the model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[[], T]) -> T:
        """The result of `compute`."""
        return compute()


def share_out(
    model: nn.Module, device: torch.device, train: TrainConfig, *, dtype: torch.dtype | None
) -> None:
    """Shard a whole model in host memory for stage 3; rank 0's weights count.

    One parameter at a time is whole on `device`. dtype: of all parameters; None: as they are.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype=dtype)
    settings = settings_of(train, grad_clip=0.0, half=dtype is torch.bfloat16)
    load_deepspeed(device.type).zero.Init(module=model, config_dict_or_path=settings)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)


class ShardedUpdater(Updater):
    """A module under DeepSpeed, with its AdamW."""

    def __init__(
        self,
        module: nn.Module,
        named: NamedParameters,
        train: TrainConfig,
        *,
        lr: float,
        grad_clip: float,
        ranks: Ranks,
        half: bool,
    ) -> None:
        super().__init__(named, train, lr=lr, grad_clip=grad_clip, ranks=ranks)
        self.stage = train.zero_stage
        # it would round the frequencies of rotary positions too
        buffers = {buffer: buffer.clone() for buffer in module.buffers()}
        device = next(iter(self.parameters.values())).device
        self.engine: Any = load_deepspeed(device.type).initialize(
            model=module,
            optimizer=self.adamw,
            model_parameters=list(self.parameters.values()),
            config=settings_of(train, grad_clip=grad_clip, half=half),
        )[0]
        for buffer, value in buffers.items():
            buffer.data = value.to(self.engine.device)
        self._ready: list[int] = []
        for number, parameter in enumerate(self.parameters.values()):
            parameter.register_post_accumulate_grad_hook(partial(self._note_ready, number))

    def _note_ready(self, number: int, parameter: Tensor) -> None:
        self._ready.append(number)

    def _check_order(self) -> None:
        """Stages 1 and 2 lay gradients into buckets as they get ready, and add these up by place.

        Raises: TrainingError where ranks differ: one weight's gradient went to another.
        """
        orders = self.ranks.gather(zlib.crc32(repr(self._ready).encode()))
        self._ready.clear()
        if self.stage < 3 and len(set(orders)) > 1:
            raise TrainingError(
                "the ranks' gradients were ready in different orders, which DeepSpeed's stage "
                f"{self.stage} mixes up; nothing was learned from them.\n"
                "Use train.zero_stage=3, or --engine torch, and report this with the model's name."
            )

    @property
    def has_stepped(self) -> bool:
        """See Updater."""
        return any(self._moments().values())

    def zero_grad(self) -> None:
        """Nothing: DeepSpeed forgets gradients at the end of a step, a skipped one too."""

    def set_zero_grad(self) -> None:
        """Nothing: a filler's gradient is 0."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient; DeepSpeed takes the mean over ranks where the sum is meant."""
        self.engine.backward(loss * self.ranks.size)

    def step(self, factor: float) -> tuple[float, bool]:
        """See Updater; all ranks take the step, or none."""
        self._check_order()
        for group in self.engine.optimizer.param_groups:
            group["lr"] = self.lr * factor
        self.engine.step()
        norm, taken = float(self.engine.get_global_grad_norm()), self.engine.was_step_applied()
        self.skipped_in_a_row = 0 if taken else self.skipped_in_a_row + 1
        return norm, taken

    def state(self, prefix: str) -> dict[str, Tensor]:
        """Whole weights and moments by name, on rank 0; all ranks take part."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        tensors: dict[str, Tensor] = {}
        steps = [values["step"] for values in self._moments().values() if "step" in values]
        for name, parameter in self.parameters.items():
            found: dict[str, Any] = {"weight": safe_get_full_fp32_param(parameter)}
            if steps:
                for key in MOMENTS:
                    found[key] = safe_get_full_optimizer_state(parameter, key)
            if self.ranks.is_first:
                shape = getattr(parameter, "ds_shape", parameter.shape)
                for key, value in found.items():
                    tensors[f"{prefix}.{key}.{name}"] = _copied(value, shape)
                if steps:
                    tensors[f"{prefix}.step.{name}"] = steps[0].detach().cpu().clone()
        return tensors

    @torch.no_grad()
    def load_state(self, prefix: str, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave. Raises: KeyError on a missing tensor."""
        names = list(self.parameters)
        has_moments = f"{prefix}.step.{names[0]}" in tensors
        if has_moments:
            self._make_moments()
        for name, parameter in self.parameters.items():
            weight = tensors[f"{prefix}.weight.{name}"].to(self.engine.device)
            with gathered([parameter], writes=True):
                parameter.copy_(weight)  # rounded to bfloat16 where that is what is trained
            self._set(parameter, weight)
            for key in MOMENTS if has_moments else ():
                value = tensors[f"{prefix}.{key}.{name}"].to(self.engine.device)
                self._set(parameter, value, key)
        if has_moments:
            step = float(tensors[f"{prefix}.step.{names[0]}"])
            for values in self._moments().values():
                if "step" in values:
                    values["step"].fill_(step)

    def _set(self, parameter: Any, value: Tensor, moment: str | None = None) -> None:
        """Give the optimizer its part of a whole float32 weight or moment."""
        from deepspeed import utils as shards

        if self.stage < 3 and moment is None:
            shards.safe_set_full_fp32_param(parameter, value)
        elif self.stage < 3:
            shards.safe_set_full_optimizer_state(parameter, value, moment)
        else:
            # not the whole: that fails where the last part is padding
            size = parameter.partition_numel()
            padded = F.pad(value.flatten(), (0, size * self.ranks.size - value.numel()))
            part = padded.narrow(0, size * self.ranks.rank, size)
            if moment is None:
                shards.safe_set_local_fp32_param(parameter, part)
            else:
                shards.safe_set_local_optimizer_state(parameter, part, moment)

    def _moments(self) -> dict[Any, dict[str, Tensor]]:
        return self.engine.basic_optimizer.state

    def _make_moments(self) -> None:
        """What a first step would make: without it there is nothing to fill."""
        zero = self.engine.optimizer
        whole = self.stage == 3
        flats = zero.fp32_partitioned_groups_flat if whole else zero.single_partition_of_fp32_groups
        for flat in flats:
            if not self._moments().get(flat):
                made = {key: torch.zeros_like(flat) for key in MOMENTS}
                self._moments()[flat] = {"step": torch.zeros((), device=flat.device), **made}
        if not whole:
            zero._lazy_init_hp_params_optimizer_state()


def gathered(parameters: list[Any], *, writes: bool = False) -> Any:
    """Inside, sharded parameters are whole on every rank; what rank 0 wrote stays."""
    from deepspeed import zero

    sharded = [p for p in parameters if hasattr(p, "ds_id")]
    return zero.GatheredParameters(sharded, modifier_rank=0 if writes else None)


def _copied(value: Tensor, shape: Any) -> Tensor:
    return value.detach().reshape(shape).to("cpu", copy=True)


class DeepSpeedEngine(TorchEngine):
    """The torch engine with its trained models under DeepSpeed, ZeRO stage 1 to 3."""

    in_lockstep = True
    state_is_copy = True

    @classmethod
    def shards_weights(cls, train: TrainConfig) -> bool:
        """Stage 3 does."""
        return train.zero_stage == 3

    def _updater(self, model: nn.Module, *, lr: float, grad_clip: float) -> Updater:
        updater = ShardedUpdater(
            Root(model),
            list(model.named_parameters()),
            self.config.train,
            lr=lr,
            grad_clip=grad_clip,
            ranks=self.ranks,
            half=self.is_half,
        )
        lm = model.lm if isinstance(model, Critic) else self.policy
        lm.root = updater.engine
        return updater

    def _agreed_chunks(self, lm: CausalLM) -> Callable[[int], int] | None:
        """In stage 3 the LM head's weights are gathered anew for every chunk of tokens."""
        is_shared = lm is self.policy and self.config.train.zero_stage == 3
        return self.ranks.largest if is_shared else None

    @property
    def is_half(self) -> bool:
        """Whether trained weights are bfloat16: those of the policy came so."""
        return self.policy.model.dtype is torch.bfloat16 and self.peft_model is None

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Whole parameters of the policy by name, some at a time; all ranks take part.

        With LoRA the trained ones: the others are whole in whatever copy there is.
        """
        is_lora = self.peft_model is not None
        named = [
            (name, parameter)
            for name, parameter in self.policy.model.named_parameters()
            if parameter.requires_grad or not is_lora
        ]
        for start in range(0, len(named), GATHERED_AT_ONCE):
            some = named[start : start + GATHERED_AT_ONCE]
            with gathered([parameter for _, parameter in some]):
                yield from ((name, parameter.detach()) for name, parameter in some)

    def _gatherer(self) -> Whole | None:
        """See TorchEngine."""
        return gathered
