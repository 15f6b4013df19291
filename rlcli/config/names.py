"""Names of settings: keys, short forms, options, environment variables and aliases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlcli.compat.verl.keys import NOT_USED, SPELLINGS, VERL_KEYS
from rlcli.compat.verl.keys import REFUSED as VERL_REFUSED
from rlcli.config.schema import defaults

OWN_KEYS: frozenset[str] = frozenset(defaults())
MAPPING_KEYS = ("data.fields", "data.chat_template_kwargs", "env.args", "reward.weights")
"""Settings that are mappings: `data.fields.prompt` is an entry of `data.fields`."""

RENAMED: dict[str, str] = {
    "algorithm.bypass": "algorithm.use_rollout_logprobs",
    "algorithm.max_refills": "algorithm.max_resample_rounds",
    "rollout.max_rows": "rollout.max_num_seqs",
    "run.keep": "run.keep_checkpoints",
    "train.rows_per_micro_batch": "train.micro_batch_size",
}
"""Old names of our settings, which still work, with their new names."""

ALIASES: dict[str, str] = {**RENAMED, **VERL_KEYS}
"""Names that are accepted for our settings: old ones and verl's."""

REFUSED: dict[str, str] = {**VERL_REFUSED, "preset": "write --preset NAME"}
"""Settings without which the run would be another one: an error with this cure."""

ENV_KEYS: dict[str, str] = {
    "MODEL_PATH": "model.path",
    "REWARD_MODEL_PATH": "reward.model",
    "CLIP_RATIO": "algorithm.clip_ratio",
    "GAE_GAMMA": "algorithm.gamma",
    "GAE_LAMBDA": "algorithm.lam",
    "KL_COEF": "algorithm.kl_coef",
    "PPO_EPOCHS": "train.ppo_epochs",
    "CRITIC_LR": "critic.lr",
    "CRITIC_EPOCHS": "critic.epochs",
    "CLIPRANGE_VALUE": "critic.cliprange_value",
    "ROLLOUT_N": "rollout.n",
    "ROLLOUT_TEMPERATURE": "rollout.temperature",
    "N_GPUS": "train.n_gpus",
    "NNODES": "train.nnodes",
    "ROLLOUT_TP_SIZE": "rollout.tensor_parallel",
    "GPU_MEMORY_UTILIZATION": "rollout.memory_fraction",
    "RLCLI_LANG": "run.lang",
}
"""Environment variable to setting. An empty variable counts as unset."""

FLAG_KEYS: dict[str, str] = {
    "model": "model.path",
    "hub": "model.hub",
    "trust_remote_code": "model.trust_remote_code",
    "data": "data.train",
    "env": "env.path",
    "tools": "env.tools",
    "env_python": "env.python",
    "val_data": "data.val",
    "epochs": "train.epochs",
    "max_steps": "train.max_steps",
    "lr": "train.lr",
    "batch_size": "train.prompts_per_step",
    "kl_coef": "algorithm.kl_coef",
    "engine": "train.engine",
    "n_gpus": "train.n_gpus",
    "seed": "run.seed",
    "reward": "reward.fn",
    "reward_model": "reward.model",
    "use_api_reward": "reward.judge.enabled",
    "rm_api_type": "reward.judge.provider",
    "rm_model": "reward.judge.model",
    "rm_prompt_preset": "reward.judge.prompt",
    "rm_system_prompt": "reward.judge.system_prompt",
    "rm_scoring_prompt": "reward.judge.scoring_prompt",
    "rm_base_url": "reward.judge.base_url",
    "rm_concurrency": "reward.judge.concurrency",
    "rm_rpm": "reward.judge.rpm",
    "rm_tpm": "reward.judge.tpm",
    "max_judge_cost": "reward.judge.max_cost",
    "unsafe_code_execution": "reward.unsafe_code_execution",
    "output_dir": "run.output_dir",
    "run_name": "run.name",
    "resume": "run.resume",
    "save_every": "run.save_every",
    "keep": "run.keep_checkpoints",
    "merge_lora": "run.merge_lora",
    "logger": "run.loggers",
    "disk_budget": "run.disk_budget",
    "preempt_exit_code": "run.preempt_exit_code",
    "lang": "run.lang",
}
"""train's options to settings. Each name is also a short form of its setting."""

PROMPT_KEYS = frozenset(
    {
        *("reward.judge.system_prompt", "reward.judge.scoring_prompt"),
        *("data.system_prompt", "data.prompt_template", "rollout.stop"),
    }
)
"""Settings in which a typed `\\n` is a new line."""

ADDRESS_KEYS = frozenset({"reward.judge.base_url", "reward.model", "rollout.url"})
"""Settings that hold, or may hold, an address."""

REMARKS: dict[str, str] = {
    **{old: f"{old} is called {new} now." for old, new in RENAMED.items()},
    "trainer.test_freq": "trainer.test_freq counts steps, not epochs (run.eval_every).",
}
"""Told once to whoever uses the key: where the guides say something else."""


@dataclass(frozen=True, slots=True)
class Unused:
    """An accepted setting that changes nothing, and why."""

    reason: str


def _short_forms() -> dict[str, str]:
    """Names without `actor_rollout_ref.` and bare last words, the actor's before the critic's."""
    names: dict[str, str] = {}
    for full in (*ALIASES, *NOT_USED, *REFUSED):
        names.setdefault(full.removeprefix("actor_rollout_ref."), full)
    for full in (*ALIASES, *NOT_USED):
        last = full.rpartition(".")[2]
        if "_" in last:
            names.setdefault(last, full)
    names.setdefault("optim.lr", "actor_rollout_ref.actor.optim.lr")
    return {**names, **FLAG_KEYS, "algo": "algorithm.name"}


SHORT_FORMS: dict[str, str] = _short_forms()


def full_name(name: str) -> str:
    """`name` without hydra's `+` and with a short form written out."""
    name = name.lstrip("+")
    return name if name in OWN_KEYS else SHORT_FORMS.get(name, name)


def translate(name: str) -> str | Unused | None:
    """Our key for `name`, `Unused` for an accepted one without effect, None for any other."""
    full = full_name(name)
    if full in OWN_KEYS or full.startswith(tuple(f"{key}." for key in MAPPING_KEYS)):
        return full
    if full in NOT_USED:
        return Unused(NOT_USED[full])
    for name, key in ALIASES.items():
        if key in MAPPING_KEYS and full.startswith(f"{name}."):
            return f"{key}{full.removeprefix(name)}"
    return ALIASES.get(full)


def first_inside(section: str) -> str | None:
    """A setting inside `section`, ours or verl's; None where it is no section."""
    keys = (*defaults(), *ALIASES)
    return next((key for key in keys if key.startswith(f"{section}.")), None)


def spell(key: str, value: Any) -> Any:
    """verl's `value` of our `key` in our words; anything else unchanged."""
    words = SPELLINGS.get(key)
    if words is None or not (value is None or isinstance(value, str)):
        return value
    return words.get("null" if value is None else value, value)
