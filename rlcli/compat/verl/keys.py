"""verl's setting names and values in ours, and what is accepted but not used."""

from __future__ import annotations

ESTIMATOR_KEY = "algorithm.adv_estimator"
"""Not a setting of ours: it selects the preset of that name."""

FUNCTION_KEY = "custom_reward_function.name"
"""Not a setting of ours: it selects the function in the file of reward.fn."""

VERL_KEYS: dict[str, str] = {
    ESTIMATOR_KEY: ESTIMATOR_KEY,
    "algorithm.use_kl_in_reward": "algorithm.kl_in_reward",
    "algorithm.kl_penalty": "algorithm.kl_reward_type",
    "algorithm.kl_ctrl.kl_coef": "algorithm.kl_coef",
    "algorithm.kl_ctrl.type": "algorithm.kl_controller",
    "algorithm.kl_ctrl.target_kl": "algorithm.kl_target",
    "algorithm.kl_ctrl.horizon": "algorithm.kl_horizon",
    "algorithm.norm_adv_by_std_in_grpo": "algorithm.scale_by_std",
    "algorithm.filter_groups.enable": "algorithm.dynamic_sampling",
    "algorithm.filter_groups.max_num_gen_batches": "algorithm.max_resample_rounds",
    "algorithm.rollout_correction.rollout_is": "algorithm.correction",
    "algorithm.rollout_correction.rollout_is_threshold": "algorithm.correction_cap",
    "algorithm.rollout_correction.bypass_mode": "algorithm.use_rollout_logprobs",
    "data.train_files": "data.train",
    "data.val_files": "data.val",
    "data.train_batch_size": "train.prompts_per_step",
    "data.max_prompt_length": "data.max_prompt_tokens",
    "data.max_response_length": "data.max_response_tokens",
    "data.filter_overlong_prompts": "data.filter_overlong",
    "data.apply_chat_template_kwargs": "data.chat_template_kwargs",
    "data.val_max_samples": "data.val_limit",
    "data.prompt_key": "data.fields.prompt",
    "data.reward_fn_key": "data.fields.data_source",
    "actor_rollout_ref.model.path": "model.path",
    "actor_rollout_ref.model.trust_remote_code": "model.trust_remote_code",
    "actor_rollout_ref.model.enable_gradient_checkpointing": "model.gradient_checkpointing",
    "actor_rollout_ref.model.lora_rank": "lora.rank",
    "actor_rollout_ref.model.lora_alpha": "lora.alpha",
    "actor_rollout_ref.model.target_modules": "lora.targets",
    "actor_rollout_ref.actor.optim.lr": "train.lr",
    "actor_rollout_ref.actor.optim.lr_warmup_steps": "train.lr_warmup_steps",
    "actor_rollout_ref.actor.optim.weight_decay": "train.weight_decay",
    "actor_rollout_ref.actor.grad_clip": "train.grad_clip",
    "actor_rollout_ref.actor.ppo_mini_batch_size": "train.mini_batch_prompts",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": "train.micro_batch_size",
    "actor_rollout_ref.actor.ppo_epochs": "train.ppo_epochs",
    "actor_rollout_ref.actor.use_dynamic_bsz": "train.dynamic_batch",
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": "train.tokens_per_micro_batch",
    "actor_rollout_ref.actor.use_kl_loss": "algorithm.kl_loss",
    "actor_rollout_ref.actor.kl_loss_coef": "algorithm.kl_loss_coef",
    "actor_rollout_ref.actor.kl_loss_type": "algorithm.kl_loss_type",
    "actor_rollout_ref.actor.entropy_coeff": "algorithm.entropy_coef",
    "actor_rollout_ref.actor.clip_ratio": "algorithm.clip_ratio",
    "actor_rollout_ref.actor.clip_ratio_low": "algorithm.clip_low",
    "actor_rollout_ref.actor.clip_ratio_high": "algorithm.clip_high",
    "actor_rollout_ref.actor.clip_ratio_c": "algorithm.clip_ratio_c",
    "actor_rollout_ref.actor.tau_pos": "algorithm.tau_pos",
    "actor_rollout_ref.actor.tau_neg": "algorithm.tau_neg",
    "actor_rollout_ref.actor.policy_loss.loss_mode": "algorithm.loss",
    "actor_rollout_ref.actor.policy_loss.clip_cov_ratio": "algorithm.clip_cov_ratio",
    "actor_rollout_ref.actor.policy_loss.clip_cov_lb": "algorithm.clip_cov_low",
    "actor_rollout_ref.actor.policy_loss.clip_cov_ub": "algorithm.clip_cov_high",
    "actor_rollout_ref.actor.policy_loss.kl_cov_ratio": "algorithm.kl_cov_ratio",
    "actor_rollout_ref.actor.policy_loss.ppo_kl_coef": "algorithm.kl_cov_coef",
    "actor_rollout_ref.actor.policy_loss.dro_beta": "algorithm.dro_beta",
    "actor_rollout_ref.actor.loss_agg_mode": "algorithm.aggregation",
    "actor_rollout_ref.actor.loss_scale_factor": "algorithm.loss_scale_factor",
    "actor_rollout_ref.rollout.n": "rollout.n",
    "actor_rollout_ref.rollout.temperature": "rollout.temperature",
    "actor_rollout_ref.rollout.top_p": "rollout.top_p",
    "actor_rollout_ref.rollout.top_k": "rollout.top_k",
    "actor_rollout_ref.rollout.max_num_seqs": "rollout.max_num_seqs",
    "actor_rollout_ref.rollout.val_kwargs.temperature": "rollout.val_temperature",
    "actor_rollout_ref.rollout.val_kwargs.n": "rollout.val_n",
    "actor_rollout_ref.actor.fsdp_config.param_offload": "train.offload_params",
    "actor_rollout_ref.actor.fsdp_config.optimizer_offload": "train.offload_optimizer",
    "actor_rollout_ref.rollout.name": "rollout.engine",
    "actor_rollout_ref.rollout.tensor_model_parallel_size": "rollout.tensor_parallel",
    "actor_rollout_ref.rollout.gpu_memory_utilization": "rollout.memory_fraction",
    "actor_rollout_ref.ref.log_prob_max_token_len_per_gpu": "ref.tokens_per_micro_batch",
    "actor_rollout_ref.ref.fsdp_config.param_offload": "ref.offload_params",
    "critic.model.path": "critic.path",
    "critic.optim.lr": "critic.lr",
    "critic.ppo_epochs": "critic.epochs",
    "critic.ppo_mini_batch_size": "critic.mini_batch_prompts",
    "trainer.critic_warmup": "critic.warmup_steps",
    "reward_model.path": "reward.model",
    "reward_model.model.path": "reward.model",
    "custom_reward_function.path": "reward.fn",
    FUNCTION_KEY: FUNCTION_KEY,
    "composite_reward.enable": "reward.composite",
    "composite_reward.weights.rm_score": "reward.weights.rm_score",
    "composite_reward.weights.rule_score": "reward.weights.rule_score",
    "trainer.project_name": "run.project",
    "trainer.logger": "run.loggers",
    "trainer.n_gpus_per_node": "train.n_gpus",
    "trainer.nnodes": "train.nnodes",
    "trainer.experiment_name": "run.name",
    "trainer.save_freq": "run.save_every",
    "trainer.test_freq": "run.eval_every",
    "trainer.total_epochs": "train.epochs",
    "trainer.total_training_steps": "train.max_steps",
    "trainer.seed": "run.seed",
    "trainer.device": "train.device",
    "trainer.default_local_dir": "run.output_dir",
    "trainer.resume_mode": "run.resume",
    "trainer.max_actor_ckpt_to_keep": "run.keep_checkpoints",
}

_PACKED = "sequences are always packed, without padding"
_MANAGER = (
    "responses are scored by reward.fn in reward.workers processes, whatever the manager; the "
    "length penalty of verl's dapo manager is algorithm.overlong_penalty=true"
)
_NO_GRAD_PASS = "passes without gradients use the training micro-batch size"

NOT_USED: dict[str, str] = {
    "actor_rollout_ref.hybrid_engine": "sampler and trainer always share the devices",
    "actor_rollout_ref.model.use_remove_padding": _PACKED,
    "actor_rollout_ref.rollout.mode": "rollout.engine says how responses are sampled",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": _NO_GRAD_PASS,
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": _NO_GRAD_PASS,
    "reward_model.reward_manager": _MANAGER,
    "reward.reward_manager.name": _MANAGER,
    "trainer.val_before_train": "evaluation always runs before the first step",
}
"""Settings that are accepted and listed once, with the reason they change nothing here."""

REFUSED: dict[str, str] = {
    "actor_rollout_ref.actor.ppo_micro_batch_size": "write train.micro_batch_size",
}
"""Settings without which the run would be another one: an error with this cure."""

_KL_TYPES = {"kl": "k1", "mse": "k2", "low_var_kl": "k3"}
_KL_SPELLINGS = _KL_TYPES | {f"{verl}+": f"{ours}+" for verl, ours in _KL_TYPES.items()}

SPELLINGS: dict[str, dict[str, str]] = {
    "algorithm.aggregation": {
        "token-mean": "token_mean",
        "token-sum": "token_sum",
        "seq-mean-token-sum": "seq_mean_token_sum",
        "seq-mean-token-mean": "seq_mean_token_mean",
        "seq-mean-token-sum-norm": "seq_mean_token_sum_norm",
    },
    "algorithm.kl_reward_type": _KL_SPELLINGS,
    "algorithm.kl_loss_type": _KL_SPELLINGS,
    "algorithm.loss": {"vanilla": "clip", "geo_mean": "gmpo"},
    "algorithm.correction": {"null": "off"},
    "rollout.engine": {"hf": "native"},
    "model.dtype": {"bf16": "bfloat16", "fp32": "float32"},
    "run.resume": {"disable": "never"},
}
"""Setting -> verl's value -> ours."""

ESTIMATOR_PRESETS: dict[str, str] = {
    "gae": "ppo",
    "grpo_vectorized": "grpo",
    "rloo_vectorized": "rloo",
}
"""Estimator -> preset, where the names differ."""

ESTIMATORS_WITHOUT_PRESET: dict[str, str] = {
    "gdpo": "gdpo",
    "otb": "otb",
    "optimal_token_baseline": "otb",
}
