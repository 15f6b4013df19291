"""The switches: which settings are read only while something else is on, and what to say if not."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rlcli.algos.registry import ESTIMATORS
from rlcli.config.episodes import EnvConfig
from rlcli.config.schema import Config


@dataclass(frozen=True, slots=True)
class Switch:
    """Settings read only while `is_on`; otherwise `reason` says why not."""

    keys: tuple[str, ...]
    is_on: Callable[[Config], bool]
    reason: str


def _keys(section: str, names: str) -> tuple[str, ...]:
    return tuple(f"{section}.{name}" for name in names.split())


def has_critic(config: Config) -> bool | None:
    """None for a user's own estimator, which nobody has looked at yet."""
    entry = ESTIMATORS.get(config.algorithm.advantage)
    return None if entry is None else "critic" in entry.needs


def scores_by_model(config: Config) -> bool:
    """Whether a judge or a reward model gives scores."""
    return config.reward.judge.enabled or config.reward.model is not None


def scores_by_function(config: Config) -> bool:
    """Whether reward.fn gives scores: alone, in a mix, or before the judge."""
    reward = config.reward
    if reward.composite:
        return "rule_score" in reward.weights
    return not scores_by_model(config) or (reward.judge.enabled and reward.judge.rule_first)


def _asks_server(config: Config) -> bool:
    """Whether a reward model is served."""
    return (config.reward.model or "").startswith(("http://", "https://"))


def _asks_hub(config: Config) -> bool:
    """Whether any model has to be fetched, as far as names tell."""
    paths = (config.model.path, config.critic.path, config.reward.model)
    return any(
        path and not path.startswith(("builtin:", "http://", "https://")) and not _is_folder(path)
        for path in paths
    )


def _is_folder(path: str) -> bool:
    try:
        return Path(os.path.expanduser(path)).is_dir()
    except (OSError, RuntimeError):
        return False


def _sweeps(config: Config) -> bool:
    """Whether a log-prob or value pass without gradients may happen."""
    algorithm = config.algorithm
    entry = ESTIMATORS.get(algorithm.advantage)
    return (
        algorithm.needs_reference
        or algorithm.compares_sampler
        or config.rollout.async_steps > 0
        or entry is None
        or bool({"critic", "sum_pi_squared"} & entry.needs)
        or config.model.dtype != "float32"
    )


EPISODE_KEYS = tuple(
    f"env.{name}" for name in EnvConfig.model_fields if name not in ("path", "tools")
)
OWN_SAMPLER = "the native sampler has neither"
ON_CPU = "the run is on the CPU: there is nowhere else to keep it"
WHOLE = "the torch engine keeps every model whole, where it computes"

SWITCHES = (
    Switch(
        _keys("algorithm", "kl_coef kl_reward_type kl_controller kl_target kl_horizon"),
        lambda config: config.algorithm.kl_in_reward,
        "algorithm.kl_in_reward is off",
    ),
    Switch(
        _keys("algorithm", "kl_reward_type kl_controller kl_target kl_horizon"),
        lambda config: config.algorithm.kl_coef > 0,
        "algorithm.kl_coef is 0",
    ),
    Switch(
        _keys("algorithm", "kl_target kl_horizon"),
        lambda config: config.algorithm.kl_controller == "adaptive",
        "algorithm.kl_controller is fixed",
    ),
    Switch(
        _keys("algorithm", "kl_loss_coef kl_loss_type"),
        lambda config: config.algorithm.kl_loss,
        "algorithm.kl_loss is off",
    ),
    Switch(
        _keys("algorithm", "kl_loss_type"),
        lambda config: config.algorithm.kl_loss_coef > 0,
        "algorithm.kl_loss_coef is 0",
    ),
    Switch(
        _keys("algorithm", "max_resample_rounds"),
        lambda config: config.algorithm.dynamic_sampling,
        "algorithm.dynamic_sampling is off",
    ),
    Switch(
        _keys("algorithm", "overlong_buffer overlong_factor"),
        lambda config: config.algorithm.overlong_penalty,
        "algorithm.overlong_penalty is off",
    ),
    Switch(
        _keys("algorithm", "overlong_buffer"),
        lambda config: config.algorithm.overlong_factor > 0,
        "algorithm.overlong_factor is 0",
    ),
    Switch(
        _keys("algorithm", "correction_cap correction_floor"),
        lambda config: config.algorithm.correction != "off",
        "algorithm.correction is off",
    ),
    Switch(
        _keys("algorithm", "correction_cap correction_floor"),
        lambda config: config.algorithm.correction != "auto",
        "the native sampler is the trainer's own model, so auto corrects nothing",
    ),
    Switch(
        _keys("algorithm", "rejection_low rejection_high"),
        lambda config: config.algorithm.rejection != "off",
        "algorithm.rejection is off",
    ),
    Switch(
        _keys("algorithm", "rejection_low"),
        lambda config: config.algorithm.rejection != "seq_k3",
        "seq_k3 has no lower bound",
    ),
    Switch(
        ("lora.alpha", "lora.dropout", "lora.targets", "run.merge_lora"),
        lambda config: config.lora.rank > 0,
        "lora.rank is 0: full weights are trained",
    ),
    Switch(
        _keys("data", "truncation"),
        lambda config: not config.data.filter_overlong or config.data.truncation == "error",
        "data.filter_overlong drops the prompts it would cut",
    ),
    Switch(
        EPISODE_KEYS,
        lambda config: config.env.is_on,
        "there is no environment: --env or --tools names one",
    ),
    Switch(
        _keys("env", "args"),
        lambda config: config.env.path is not None,
        "a file of tools takes no arguments",
    ),
    Switch(
        ("env.tasks", "env.val_tasks"),
        lambda config: not config.env.is_on or not config.data.train,
        "the tasks are those of data.train",
    ),
    Switch(
        _keys("train", "tokens_per_micro_batch"),
        lambda config: config.train.dynamic_batch,
        "train.dynamic_batch is off: micro-batches have train.micro_batch_size rows",
    ),
    Switch(
        _keys("train", "micro_batch_size"),
        lambda config: not config.train.dynamic_batch,
        "train.dynamic_batch is on: micro-batches are filled by tokens",
    ),
    Switch(
        _keys("train", "zero_stage offload_params offload_optimizer"),
        lambda config: config.train.engine in ("deepspeed", "fsdp"),
        WHOLE,
    ),
    Switch(
        _keys("train", "zero_stage"),
        lambda config: config.train.engine != "fsdp",
        "the fsdp engine shares everything out, as stage 3 does",
    ),
    Switch(
        _keys("train", "offload_params"),
        lambda config: config.train.engine != "deepspeed" or config.train.zero_stage == 3,
        "only ZeRO stage 3 shares out the weights",
    ),
    Switch(
        _keys("train", "offload_optimizer"),
        lambda config: config.train.engine != "deepspeed" or config.train.zero_stage > 0,
        "ZeRO stage 0 shares out nothing",
    ),
    Switch(
        _keys("ref", "tokens_per_micro_batch"),
        _sweeps,
        "no KL term is on and nothing else needs a pass without gradients",
    ),
    Switch(
        _keys("ref", "offload_params"),
        lambda config: config.algorithm.needs_reference,
        "no KL term is on, so there is no reference",
    ),
    Switch(
        _keys("ref", "offload_params"),
        lambda config: not config.lora.rank,
        "with LoRA the reference is the policy without its adapter",
    ),
    Switch(
        _keys("ref", "offload_params"),
        lambda config: config.train.device != "cpu",
        ON_CPU,
    ),
    Switch(
        _keys("rollout", "tensor_parallel memory_fraction"),
        lambda config: config.rollout.url is None,
        "the server at rollout.url has its own",
    ),
    Switch(
        _keys("rollout", "replicas"),
        lambda config: config.rollout.starts_servers,
        "rlcli starts no vLLM servers for this run",
    ),
    Switch(
        _keys("rollout", "tensor_parallel memory_fraction"),
        lambda config: config.rollout.engine != "native",
        OWN_SAMPLER,
    ),
    Switch(
        ("rollout.val_temperature", "rollout.val_n", "run.eval_every"),
        lambda config: config.evaluates,
        "data.val is empty",
    ),
    Switch(
        _keys("rollout", "val_n"),
        lambda config: config.rollout.val_temperature > 0 or config.rollout.val_n == 1,
        "rollout.val_temperature is 0: greedy responses to one prompt are all alike",
    ),
    Switch(
        ("reward.normalize", "reward.normalize_mean", "reward.normalize_std"),
        lambda config: config.reward.model is not None,
        "no reward model scores in this run",
    ),
    Switch(
        ("reward.normalize_mean", "reward.normalize_std"),
        lambda config: config.reward.normalize == "fixed",
        "reward.normalize is not fixed",
    ),
    Switch(
        _keys("reward", "workers"),
        scores_by_function,
        "no function scores in this run",
    ),
    Switch(
        _keys("reward", "timeout_s"),
        lambda config: scores_by_function(config) or _asks_server(config),
        "no function scores in this run",
    ),
    Switch(
        _keys("reward", "unsafe_code_execution"),
        lambda config: scores_by_function(config) and config.reward.fn in ("rules", "code"),
        "no rule here runs code",
    ),
    Switch(
        _keys("run", "keep_checkpoints"),
        lambda config: config.run.save_every != -1,
        "run.save_every=-1 keeps one checkpoint",
    ),
    Switch(
        _keys("run", "project"),
        lambda config: "wandb" in config.run.loggers,
        "run.loggers has no wandb",
    ),
    Switch(
        _keys("run", "name"),
        lambda config: config.run.output_dir is None or "wandb" in config.run.loggers,
        "run.output_dir says where the run lives",
    ),
    Switch(_keys("model", "hub"), _asks_hub, "every model is on this machine"),
)
"""In this order: the first that is off gives the reason."""
