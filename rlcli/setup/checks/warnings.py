"""Combinations that run, and mean something other than one might think."""

from __future__ import annotations

from rlcli.config.resolved import Resolved
from rlcli.setup.checks.algorithm import cuts
from rlcli.setup.checks.conditional_settings import has_critic


def advice(resolved: Resolved) -> list[str]:
    """One line each."""
    return [
        *_off_policy(resolved),
        *_ahead(resolved),
        *_sampler(resolved),
        *_budget(resolved),
        *_same_model(resolved),
        *_rates(resolved),
    ]


def _off_policy(resolved: Resolved) -> list[str]:
    config = resolved.config
    train, algorithm = config.train, config.algorithm
    updates = -(-train.prompts_per_step // train.mini_batch_prompts) * train.ppo_epochs
    if algorithm.advantage == "opo" and updates > 1:
        return [
            f"opo is meant to be exactly on-policy; this run makes {updates} updates per step "
            "(train.mini_batch_prompts=train.prompts_per_step and train.ppo_epochs=1 make one)."
        ]
    if algorithm.loss == "gpg" and updates > 1:
        return [f"the gpg loss has no ratio: {updates} updates per step drift off-policy."]
    old_is_older = config.rollout.async_steps and algorithm.use_rollout_logprobs
    if algorithm.loss == "gspo" and updates == 1 and not old_is_older:
        return ["one update per step: every ratio is 1, and gspo equals grpo."]
    return []


def _ahead(resolved: Resolved) -> list[str]:
    """Rollouts that are a step old, where nothing makes up for it."""
    algorithm = resolved.config.algorithm
    if not resolved.config.rollout.async_steps:
        return []
    where = resolved.where("rollout.async_steps")
    if algorithm.advantage == "opo":
        return [f"opo is meant to be exactly on-policy; with {where} its rollouts are a step old."]
    has_ratio = algorithm.use_rollout_logprobs and algorithm.loss != "gpg"
    if algorithm.correction != "off" or has_ratio:
        return []
    return [
        f"with {where} rollouts are a step older than the policy that learns from them, and "
        "nothing corrects for it."
    ]


def _sampler(resolved: Resolved) -> list[str]:
    return [
        f"{resolved.where(key)} samples from another distribution than the one that is trained, "
        "and nothing corrects for it."
        for key in ("rollout.top_p", "rollout.top_k")
        if cuts(resolved, key)
    ]


def _budget(resolved: Resolved) -> list[str]:
    config = resolved.config
    longest = config.data.max_prompt_tokens + config.data.max_response_tokens
    budget = config.train.tokens_per_micro_batch
    if not config.train.dynamic_batch or budget >= longest:
        return []
    return [
        f"{resolved.where('train.tokens_per_micro_batch')} is less than one prompt and response of "
        f"full length ({longest:,} tokens): such a rollout makes a micro-batch of its own."
    ]


def _same_model(resolved: Resolved) -> list[str]:
    """Comparisons of sampler and trainer where both are one float32 model."""
    config = resolved.config
    is_same = config.model.dtype == "float32" and config.rollout.is_native
    if not is_same or config.rollout.async_steps:
        return []
    asked = {
        "algorithm.correction": config.algorithm.corrects_sampler,
        "algorithm.rejection": config.algorithm.rejection != "off",
        "algorithm.use_rollout_logprobs": config.algorithm.use_rollout_logprobs,
    }
    return [
        f"{resolved.where(key)} finds little to do: sampler and trainer are the same float32 model."
        for key, is_asked in asked.items()
        if is_asked
    ]


def _rates(resolved: Resolved) -> list[str]:
    """Runs too short for their schedule, or without any learning."""
    train, critic = resolved.config.train, resolved.config.critic
    notes: list[str] = []
    if train.lr == 0.0:
        notes.append(f"{resolved.where('train.lr')}: the policy does not learn.")
    if train.max_steps is None:
        return notes
    last = resolved.where("train.max_steps")
    if train.lr_warmup_steps >= train.max_steps:
        key = resolved.where("train.lr_warmup_steps")
        notes.append(f"{key} is not less than {last}: the learning rate never reaches train.lr.")
    if has_critic(resolved.config) and critic.warmup_steps >= train.max_steps:
        key = resolved.where("critic.warmup_steps")
        notes.append(
            f"{key} is not less than {last}: the critic alone learns, the policy never does."
        )
    return notes
