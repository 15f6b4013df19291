"""The checked plan of a run: settings, data, models and device, before a weight is loaded."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcli.algos.registry import ESTIMATORS, LOSSES
from rlcli.config.resolved import Resolved
from rlcli.config.schema import Config
from rlcli.data.prompts import EncodedPrompts, encode_prompts
from rlcli.doctor.gpu import check_gpus_usable
from rlcli.envs.agent_run import Agent
from rlcli.envs.run import Environment, find_environment, needs_scorer
from rlcli.errors import ConfigError, DeviceNotFoundError, ModelError
from rlcli.models.weight_files import Use, quantization_of
from rlcli.setup import checks
from rlcli.setup.resources import (
    chat_format,
    check_context,
    check_rewards,
    check_tags,
    check_token_ids,
    find_critic,
    find_model,
    find_reward_model,
    load_data,
    open_dialogue,
    open_model,
)
from rlcli.setup.start_model import describe
from rlcli.system.hardware import GIB

if TYPE_CHECKING:
    import torch

    from rlcli.envs.dialogue import Dialogue


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything known about a run before a weight is loaded."""

    resolved: Resolved
    model_dir: Path
    critic_dir: Path | None
    reward_dir: Path | None
    tokenizer: Any
    model_config: Any
    train: EncodedPrompts
    val: EncodedPrompts | None
    environment: Environment | Agent | None
    dialogue: Dialogue | None
    device: torch.device
    num_steps: int
    steps_per_epoch: int
    notes: list[str]

    @property
    def config(self) -> Config:
        """The settings as adjusted to the data."""
        return self.resolved.config


def make_plan(resolved: Resolved, *, is_dry: bool = False) -> Plan:
    """Settings, model config, tokenizer and data, all checked against each other.

    is_dry: an adapter to start from is not merged into its base.

    Raises: UsageError (ConfigError, ModelError, DataError, RewardError) with the cure.
    """
    resolved = checks.check_engines(checks.check(resolved))
    device = choose_device(resolved.config)
    resolved = checks.resolve_sampler(resolved, is_cuda=device.type == "cuda")
    config = resolved.config
    if config.model.compile:
        from rlcli.models.compile import check_compiler

        check_compiler(device, resolved.where("model.compile"))
    environment = find_environment(resolved)
    data = load_data(config, environment)
    needs = _needs(resolved)
    reward_dir = find_reward_model(resolved)
    rows = [data.rows, data.val] if needs_scorer(config, environment) else []
    reward_notes = check_rewards(resolved, rows, reward_dir, os.environ) if rows else []
    use: Use = "adapters" if config.lora.rank else "train"
    model_dir = find_model(config, config.model.path, merges=not is_dry)
    model = open_model(config, model_dir, use, where=resolved.where("model.path"))
    reward_notes += check_tags(config, model.tokenizer, rows) if rows else []
    dialogue = open_dialogue(config, environment, model)
    limits = {
        "max_prompt_tokens": config.data.max_prompt_tokens,
        "filter_overlong": config.data.filter_overlong,
        "truncation": config.data.truncation,
        "chat": chat_format(config, environment),
    }
    train = encode_prompts(data.rows, model.tokenizer, **limits)
    val = encode_prompts(data.val, model.tokenizer, **limits) if data.val else None
    check_token_ids([*train.prompts, *(val.prompts if val else ())], model)
    check_context(resolved, model.positions)
    config, notes = checks.batch_arithmetic(config, len(train.prompts))
    batches = checks.batching(config, len(train.prompts))
    critic_dir = find_critic(resolved, model.folder, model.config) if "critic" in needs else None
    resolved = _resolve_engine(
        resolved.clamp_to_data(config), model.config, has_critic=critic_dir is not None
    )
    start_note = describe(config.model.path, model_dir)
    return Plan(
        resolved=resolved,
        model_dir=model.folder,
        critic_dir=critic_dir,
        reward_dir=reward_dir,
        tokenizer=model.tokenizer,
        model_config=model.config,
        train=train,
        val=val,
        environment=environment,
        dialogue=dialogue,
        device=device,
        num_steps=batches.num_steps,
        steps_per_epoch=batches.steps_per_epoch,
        notes=[
            *resolved.notes,
            *([start_note] if start_note else []),
            *data.notes,
            *reward_notes,
            *train.notes,
            *(dialogue.notes if dialogue else ()),
            *notes,
        ],
    )


def _resolve_engine(resolved: Resolved, model_config: Any, *, has_critic: bool) -> Resolved:
    """`resolved` with the fsdp engine if train.engine is auto and the run needs it.

    Raises: ConfigError for an engine that cannot train this model.
    """
    from rlcli.plan.engine import resolve_engine
    from rlcli.plan.machine import find_machine
    from rlcli.plan.memory import Models
    from rlcli.plan.shapes import shape_of

    config, values = resolved.config, model_config.to_dict()
    is_quantised = quantization_of(values) is not None
    if config.train.engine == "fsdp" and is_quantised:
        raise ConfigError(
            f"{resolved.where('train.engine')} cannot share out quantised weights, and "
            f"{resolved.where('model.path')} has them.\n"
            "Use --engine torch, or the model that was quantised."
        )
    if config.train.engine != "auto" or is_quantised or config.model.compile:
        return resolved
    try:
        shape = shape_of(values, name=config.model.path)
    except ModelError:  # of unknown size
        return resolved
    models = Models(policy=shape, critic=shape if has_critic else None)
    return resolve_engine(resolved, models, find_machine(config.train), num_val=0)


def _needs(resolved: Resolved) -> frozenset[str]:
    """The inputs that the estimator and the loss need, those of a user's functions included.

    Raises: ConfigError for a user's function whose inputs no run has.
    """
    algorithm = resolved.config.algorithm
    if ":" not in algorithm.advantage + algorithm.loss:
        return ESTIMATORS[algorithm.advantage].needs | LOSSES[algorithm.loss].needs
    from rlcli.algos.algorithm import estimator_entry, loss_entry

    needs = estimator_entry(algorithm.advantage).needs | loss_entry(algorithm.loss).needs
    if "group" in needs and resolved.config.rollout.n < 2:
        raise ConfigError(
            f"{resolved.where('algorithm.advantage')} asks for group_B and needs rollout.n >= 2, "
            f"got {resolved.where('rollout.n')}. Raise it."
        )
    return needs


def choose_device(config: Config) -> torch.device:
    """cuda, mps or cpu.

    Raises: DeviceNotFoundError if the requested device is missing, or torch cannot use the GPU
        of this machine.
    """
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an old driver's, which the error below repeats
        found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    wanted = config.train.device
    if not found["cuda"]:
        check_gpus_usable(wanted, os.environ)
    if wanted == "auto":
        return torch.device(next((name for name, here in found.items() if here), "cpu"))
    if wanted != "cpu" and not found[wanted]:
        raise DeviceNotFoundError(
            f"train.device={wanted}, but torch {torch.__version__} finds no such device.\n"
            "Use train.device=auto, or install a torch build for your hardware."
        )
    return torch.device(wanted)


def expects_cuda(config: Config) -> bool:
    """Whether `choose_device` takes a GPU, without raising if it cannot."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return config.train.device in ("auto", "cuda") and torch.cuda.is_available()


def describe_device(device: torch.device) -> str:
    """The device as text: the GPU and its memory, or the number of CPU threads."""
    import torch

    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {properties.total_memory / GIB:.0f} GiB"
    if device.type == "mps":
        return "Apple GPU (mps)"
    threads = torch.get_num_threads()
    return "CPU, 1 thread" if threads == 1 else f"CPU, {threads} threads"
