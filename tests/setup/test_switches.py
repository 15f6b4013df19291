"""Every switch: its settings are listed while it is off, and not while it is on."""

from __future__ import annotations

from typing import Any

import pytest

from rlcli.config.schema import defaults
from rlcli.setup.checks.conditional_settings import SWITCHES

F32 = "model.dtype=float32"
RM = ["reward.model=some/rm", "reward.normalize=fixed"]
PAIRS = [
    ("ppo", ["use_kl_in_reward=False"], "algorithm.kl_reward_type=k3", "kl_in_reward is off"),
    ("ppo", ["algorithm.kl_coef=0"], "algorithm.kl_reward_type=k3", "kl_coef is 0"),
    ("ppo", [], "algorithm.kl_horizon=5", "kl_controller is fixed"),
    ("ppo", ["algorithm.kl_controller=adaptive"], "algorithm.kl_horizon=5", None),
    ("grpo", [], "algorithm.kl_loss_type=mse", None),
    ("grpo", ["use_kl_loss=False"], "algorithm.kl_loss_type=mse", "kl_loss is off"),
    ("grpo", ["algorithm.kl_loss_coef=0"], "algorithm.kl_loss_type=mse", "kl_loss_coef is 0"),
    ("dapo", [], "algorithm.max_resample_rounds=3", None),
    (
        "dapo",
        ["algorithm.dynamic_sampling=false"],
        "algorithm.max_resample_rounds=3",
        "sampling is off",
    ),
    ("dapo", ["algorithm.overlong_penalty=false"], "algorithm.overlong_factor=2", "penalty is off"),
    ("dapo", ["algorithm.overlong_factor=0"], "algorithm.overlong_buffer=0.1", "factor is 0"),
    ("grpo", [], "algorithm.correction_cap=3", "auto corrects nothing"),
    ("grpo", ["algorithm.correction=off"], "algorithm.correction_cap=3", "correction is off"),
    ("grpo", ["algorithm.correction=token"], "algorithm.correction_cap=3", None),
    ("grpo", [], "algorithm.rejection_high=3", "rejection is off"),
    ("grpo", ["algorithm.rejection=seq_k3"], "algorithm.rejection_low=0.1", "no lower bound"),
    ("grpo", ["lora.rank=4"], "lora.alpha=8", None),
    ("grpo", [], "run.merge_lora=true", "full weights"),
    ("grpo", ["data.filter_overlong=true"], "data.truncation=left", "drops the prompts"),
    ("grpo", [], "data.truncation=left", None),
    ("grpo", ["data.filter_overlong=true"], "data.truncation=error", None),
    ("grpo", ["data.val=[]"], "run.eval_every=5", "data.val is empty"),
    ("grpo", [], "rollout.val_n=4", "all alike"),
    ("grpo", ["rollout.val_temperature=1"], "rollout.val_n=4", None),
    ("grpo", ["run.save_every=-1"], "run.keep_checkpoints=3", "keeps one checkpoint"),
    ("grpo", [], "run.keep_checkpoints=3", None),
    ("grpo", [], "run.project=mine", "no wandb"),
    ("grpo", ["run.loggers=[console,wandb]"], "run.project=mine", None),
    ("grpo", ["run.output_dir=x"], "run.name=mine", "where the run lives"),
    ("grpo", ["run.output_dir=x", "run.loggers=[wandb]"], "run.name=mine", None),
    ("grpo", [], "run.name=mine", None),
    ("grpo", [], "model.hub=modelscope", None),
    ("grpo", ["model.path=builtin:quickstart"], "model.hub=modelscope", "on this machine"),
    ("opo", [], "ref.offload_params=true", "there is no reference"),
    ("opo", ["model.dtype=float32"], "ref.tokens_per_micro_batch=9000", "no KL term is on"),
    ("grpo", ["model.dtype=float32"], "ref.tokens_per_micro_batch=9000", None),
    ("opo", [F32, "algorithm.correction=token"], "ref.tokens_per_micro_batch=9000", None),
    ("opo", [F32, "rollout.async_steps=1"], "ref.tokens_per_micro_batch=9000", None),
    ("grpo", ["lora.rank=4"], "ref.offload_params=true", "policy without its adapter"),
    ("grpo", [], "reward.normalize=running", "no reward model"),
    ("grpo", ["reward.model=some/rm"], "reward.normalize=running", None),
    ("grpo", ["reward.model=some/rm"], "reward.normalize_std=2", "normalize is not fixed"),
    ("grpo", [*RM, "reward.normalize_mean=1"], "reward.normalize_std=2", None),
    ("grpo", ["reward.fn=gsm8k"], "reward.unsafe_code_execution=true", "runs code"),
    ("grpo", ["reward.fn=code"], "reward.unsafe_code_execution=true", None),
]


@pytest.mark.parametrize(("algo", "context", "setting", "reason"), PAIRS)
def test_a_setting_under_a_switch_that_is_off_is_listed_once(
    checked: Any, algo: str, context: list[str], setting: str, reason: str | None
) -> None:
    key = setting.partition("=")[0]
    notes = [
        note
        for note in checked(*context, setting, algo=algo).notes
        if note.startswith("not used: ") and key in note.partition("(")[0]
    ]
    if reason is None:
        assert notes == []
    else:
        (note,) = notes
        assert reason in note


def test_switches_name_settings_that_exist() -> None:
    assert {key for switch in SWITCHES for key in switch.keys} <= set(defaults())


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.dtype=float32", "algorithm.use_rollout_logprobs=true"], "the same float32 model"),
        (["model.dtype=float32", "algorithm.correction=token"], "finds little to do"),
        (["train.lr=0"], "train.lr=0.0 (from override train.lr=0): the policy does not learn"),
        (["train.max_steps=3", "train.lr_warmup_steps=3"], "never reaches train.lr"),
        (["train.max_steps=3", "trainer.critic_warmup=3"], "the policy never does"),
    ],
)
def test_what_has_little_effect_is_told(checked: Any, overrides: list[str], words: str) -> None:
    assert [note for note in checked(*overrides).notes if words in note]
