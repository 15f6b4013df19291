"""Every setting and every default, one line each. Presets and users change only what differs."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, cast

from pydantic import Field, field_validator
from pydantic.fields import FieldInfo

from rlcli.config.base import (
    Count,
    Finite,
    Fraction,
    Interval,
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Section,
    leaves,
)
from rlcli.config.episodes import EnvConfig
from rlcli.config.rewards import RewardConfig

Aggregation = Literal[
    "token_mean",
    "token_sum",
    "seq_mean_token_sum",
    "seq_mean_token_mean",
    "seq_mean_token_sum_norm",
]
KLType = Literal["k1", "abs", "k2", "k3", "k1+", "abs+", "k2+", "k3+"]


_MODULE = re.compile(r"\w+(\.\w+)*")


class AlgorithmConfig(Section):
    """What is estimated and what is minimised."""

    name: str = "ppo"
    """Algorithm preset this run started from."""
    advantage: str = "gae"
    """Advantage estimator: a name of the table, or `package.module:function`."""
    loss: str = "clip"
    """Policy loss: a name of the table, or `package.module:function`."""
    aggregation: Aggregation = "token_mean"
    """How per-token losses become one number."""
    loss_scale_factor: PositiveFloat | None = None
    """Divisor of seq_mean_token_sum_norm; none: data.max_response_tokens."""
    gamma: Fraction = 1.0
    """Discount per token (gae, reinforce_plus_plus)."""
    gamma_turn: Fraction = 1.0
    """Further discount from one turn of an episode to the next (gae, reinforce_plus_plus)."""
    lam: Fraction = 0.95
    """GAE lambda."""
    scale_by_std: bool = True
    """Divide group advantages by the group's standard deviation (false: Dr. GRPO)."""
    clip_ratio: NonNegativeFloat = 0.2
    """Clip range on both sides, where clip_low and clip_high are not set."""
    clip_low: NonNegativeFloat | None = None
    """Lower clip range; none: clip_ratio."""
    clip_high: NonNegativeFloat | None = None
    """Upper clip range; none: clip_ratio."""
    clip_ratio_c: Annotated[float, Field(gt=1.0)] = 3.0
    """Dual-clip bound for negative advantages (clip), weight cap (dppo)."""
    tau_pos: PositiveFloat = 1.0
    """SAPO gate temperature for positive advantages."""
    tau_neg: PositiveFloat = 1.05
    """SAPO gate temperature for the other advantages."""
    clip_cov_ratio: Annotated[float, Field(gt=0.0, le=1.0)] = 0.0002
    """Share of tokens that clip_cov cuts out."""
    clip_cov_low: Finite = 1.0
    """Lower end of the covariance band of clip_cov."""
    clip_cov_high: Finite = 5.0
    """Upper end of the covariance band of clip_cov."""
    kl_cov_ratio: Annotated[float, Field(gt=0.0, le=1.0)] = 0.002
    """Share of tokens that kl_cov penalises."""
    kl_cov_coef: NonNegativeFloat = 1.0
    """Weight of the |log ratio| penalty of kl_cov."""
    dro_beta: PositiveFloat | None = None
    """Weight of the quadratic log-ratio penalty; the dro loss needs it."""
    kl_in_reward: bool = False
    """Subtract kl_coef * KL(policy, reference) from every token's reward."""
    kl_loss: bool = False
    """Add kl_loss_coef * KL(policy, reference) to the loss."""
    kl_reward_type: KLType = "k1"
    """KL estimator of kl_in_reward."""
    kl_loss_type: KLType = "k3"
    """KL estimator of kl_loss."""
    kl_coef: NonNegativeFloat = 0.001
    """Coefficient of kl_in_reward (the start value of the adaptive controller)."""
    kl_loss_coef: NonNegativeFloat = 0.001
    """Coefficient of kl_loss."""
    kl_controller: Literal["fixed", "adaptive"] = "fixed"
    """Whether kl_coef stays or follows kl_target (arXiv 1909.08593)."""
    kl_target: PositiveFloat = 0.1
    """KL per token the adaptive controller aims at."""
    kl_horizon: Positive = 10_000
    """Rollouts over which the adaptive controller reacts."""
    entropy_coef: NonNegativeFloat = 0.0
    """Weight of the entropy bonus."""
    dynamic_sampling: bool = False
    """Drop groups whose scores are all equal and sample others instead (DAPO)."""
    max_resample_rounds: Positive = 10
    """Further sampling rounds of dynamic_sampling before training with what there is."""
    overlong_penalty: bool = False
    """Lower the score of responses near the length limit (DAPO)."""
    overlong_buffer: Annotated[float, Field(gt=0.0, le=1.0)] = 0.2
    """Share of data.max_response_tokens over which the penalty grows."""
    overlong_factor: NonNegativeFloat = 1.0
    """Penalty at the length limit."""
    overlong_filter: bool = False
    """Leave responses cut by the length limit out of the loss."""
    correction: Literal["auto", "off", "token", "sequence"] = "auto"
    """Importance weights trainer/sampler; auto: token for two engines, or with async_steps."""
    correction_cap: PositiveFloat = 2.0
    """Importance weights above this are cut to it."""
    correction_floor: PositiveFloat | None = None
    """Set: weights outside [correction_floor, correction_cap] become 0 instead of being cut."""
    rejection: Literal["off", "seq_k1", "seq_k3"] = "off"
    """Leave out rollouts whose mean trainer/sampler divergence is out of bounds."""
    rejection_low: PositiveFloat = 0.5
    """seq_k1: smallest mean sampler/trainer ratio that is kept."""
    rejection_high: PositiveFloat = 2.0
    """seq_k1: largest mean ratio kept; seq_k3: largest mean k3 kept."""
    use_rollout_logprobs: bool = False
    """Use the sampler's log-probs as old log-probs, without a trainer pass."""

    @property
    def clip_bounds(self) -> tuple[float, float]:
        """(low, high) clip ranges in effect."""
        low = self.clip_ratio if self.clip_low is None else self.clip_low
        high = self.clip_ratio if self.clip_high is None else self.clip_high
        return low, high

    @property
    def corrects_sampler(self) -> bool:
        """Whether trainer/sampler ratios weight the loss. `auto` has been replaced by now."""
        return self.correction in ("token", "sequence")

    @property
    def compares_sampler(self) -> bool:
        """Whether the trainer's own log-probs are wanted beside the sampler's."""
        return self.corrects_sampler or self.rejection != "off"

    @property
    def needs_reference(self) -> bool:
        """A reference model exists exactly when one of the two KL terms is on."""
        return self.kl_in_reward or self.kl_loss


class ModelConfig(Section):
    """The policy."""

    path: str = "Qwen/Qwen2.5-0.5B"
    """Directory, hub name, or builtin:quickstart."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute dtype; auto: bfloat16 on CUDA, float32 elsewhere. torch trains float32 weights."""
    trust_remote_code: bool = False
    """Run model code that comes with the checkpoint."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """Compile the layers with torch.compile for updates, reference and critic; needs a compiler."""
    hub: Literal["hf", "modelscope"] = "hf"
    """Where a model that is no directory comes from (HF_ENDPOINT names a mirror of hf)."""


class LoraConfig(Section):
    """Low-rank adapters instead of full weights."""

    rank: NonNegative = 0
    """0: full weights."""
    alpha: PositiveFloat = 16.0
    """Scale: updates are multiplied by alpha / rank."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout on the adapters' input."""
    targets: str | list[str] = "all-linear"
    """Module names that get an adapter: all-linear, names (q_proj,v_proj), or a pattern."""

    @field_validator("targets")
    @classmethod
    def _split_names(cls, value: str | list[str]) -> str | list[str]:
        """Names in one text become a list; peft takes any text but all-linear for a pattern."""
        if isinstance(value, str) and value != "all-linear":
            names = [name.strip() for name in value.split(",")]
            if all(_MODULE.fullmatch(name) for name in names):
                return names
        return value


HELD_OUT = "train:5%"
"""A value of data.val: rows of data.train that are kept out of training."""


class DataConfig(Section):
    """Prompt files, chat template and length limits."""

    train: list[str] = ["builtin:math_reasoning"]
    """Files or patterns (parquet, json, jsonl), builtin:NAME, or hf:OWNER/NAME/FILE."""
    val: list[str] = ["builtin:math_reasoning_val"]
    """Files to evaluate on; train:5%: rows held out from data.train; [] turns evaluation off."""
    val_limit: Interval = -1
    """Evaluate on the first rows only; -1 or 0: on all."""
    fields: dict[str, str] = {}
    """Column names that differ from ours: {prompt: question, ground_truth: answer}."""
    prompt_template: str | None = None
    """Prompt made of several columns, named in braces: "{question}\\n\\n{context}"."""
    system_prompt: str | None = None
    """System message for every prompt that has none of its own."""
    drop_last_assistant: bool | None = None
    """Take out a last assistant message (the reference answer); none: only of conversations."""
    chat_template_kwargs: dict[str, Any] = {}
    """Variables for the chat template, such as {enable_thinking: false}."""
    max_prompt_tokens: Positive = 512
    """Longest prompt."""
    max_response_tokens: Positive = 1024
    """Longest response; sampling stops there."""
    filter_overlong: bool = False
    """Drop prompts over the limit (the number is printed) instead of `truncation`."""
    truncation: Literal["error", "left", "right", "middle"] = "error"
    """What happens to a prompt over the limit."""
    shuffle: bool = True
    """A new order every epoch, fixed by run.seed."""


class RolloutConfig(Section):
    """Sampling."""

    engine: Literal["auto", "native", "vllm", "vllm_server"] = "auto"
    """The sampler; native is torch in this process. auto: vllm on GPUs where it is installed."""
    n: Count = 1
    """Responses per prompt (the group size)."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature; log-probs everywhere are those of logits / temperature."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Nucleus sampling; 1.0: off."""
    top_k: Interval = -1
    """Sample from the k likeliest tokens; -1 or 0: off."""
    stop: list[Annotated[str, Field(min_length=1)]] = []
    """Texts that end a response. Their tokens are trained on; the reward does not see them."""
    max_num_seqs: Positive = 512
    """Responses sampled side by side."""
    val_temperature: NonNegativeFloat = 0.0
    """Temperature of evaluation; 0: greedy."""
    val_n: Count = 1
    """Responses per prompt in evaluation, averaged into pass@1."""
    tensor_parallel: Positive = 1
    """GPUs that share one copy of the model while vLLM samples."""
    memory_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Share of each GPU's memory that vLLM takes."""
    replicas: Positive = 1
    """vLLM servers that rlcli starts on GPUs of their own (vllm_server without an address)."""
    url: str | None = None
    """Address of a running vLLM server (vllm_server), or several with commas."""
    async_steps: Annotated[int, Field(ge=0, le=1)] = 0
    """Steps that sampling may run ahead of training."""

    @property
    def is_native(self) -> bool:
        """Whether torch samples; an auto that means vLLM has become that before a run begins."""
        return self.engine in ("auto", "native")

    @property
    def starts_servers(self) -> bool:
        """Whether rlcli starts the vLLM servers that it samples from."""
        return self.engine == "vllm_server" and self.url is None


class TrainConfig(Section):
    """Updates."""

    engine: Literal["auto", "torch", "fsdp", "deepspeed"] = "auto"
    """torch: whole in every process. fsdp, deepspeed: shared. auto: fsdp if that is needed."""
    n_gpus: Positive | None = None
    """Processes of each node, a GPU each where there are any; none: one per visible GPU, or one."""
    nnodes: Positive = 1
    """Machines that train together."""
    min_nodes: Positive | None = None
    """Machines that a run goes on with after others are lost; none: all. NNODES=1:2 sets both."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 2
    """What DeepSpeed shards: 1 optimizer states, 2 also gradients, 3 also weights."""
    offload_params: bool = False
    """Keep weights in CPU memory between uses; under fsdp gradients and optimizer states too."""
    offload_optimizer: bool = False
    """Keep the optimizer states in CPU memory; under fsdp the same as offload_params."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto: cuda, then mps, then cpu."""
    lr: NonNegativeFloat = 1e-6
    """Learning rate of the policy."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate after warm-up, to 0 at the last step."""
    lr_warmup_steps: NonNegative = 0
    """Steps over which the learning rate grows from 0."""
    weight_decay: NonNegativeFloat = 0.01
    """AdamW weight decay."""
    beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """AdamW beta1."""
    beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.999
    """AdamW beta2."""
    grad_clip: PositiveFloat = 1.0
    """Largest gradient norm."""
    epochs: Positive = 10
    """Passes over the training data."""
    max_steps: Positive | None = None
    """Stop after this many steps, whatever epochs says."""
    prompts_per_step: Positive = 256
    """Prompts sampled per step."""
    mini_batch_prompts: Positive = 256
    """Prompts per optimizer step."""
    ppo_epochs: Positive = 1
    """Passes over each step's rollouts."""
    dynamic_batch: bool = True
    """Fill micro-batches by tokens; false: by micro_batch_size."""
    tokens_per_micro_batch: Positive = 16_384
    """Packed tokens per micro-batch; never changes the gradient."""
    micro_batch_size: Positive | None = None
    """Rollouts per micro-batch when dynamic_batch is off."""

    @property
    def offloads(self) -> bool:
        """Whether the fsdp engine keeps weights, gradients and optimizer states on the host."""
        return self.offload_params or self.offload_optimizer


class RefConfig(Section):
    """The reference model of the KL terms: the policy as it was at the start."""

    tokens_per_micro_batch: Positive | None = None
    """Packed tokens per log-prob pass without gradients; none: train.tokens_per_micro_batch."""
    offload_params: bool = False
    """Keep the reference in CPU memory between uses."""


class CriticConfig(Section):
    """The value model of gae."""

    path: str | None = None
    """Directory or hub name; none: model.path with a new value head."""
    lr: NonNegativeFloat = 1e-5
    """Learning rate of the critic."""
    epochs: Positive = 1
    """Passes of the critic over each step's rollouts."""
    mini_batch_prompts: Positive | None = None
    """Prompts per optimizer step of the critic; none: train.mini_batch_prompts."""
    cliprange_value: PositiveFloat = 0.5
    """How far a value may move from the old one before its loss is clipped."""
    grad_clip: PositiveFloat = 1.0
    """Largest gradient norm of the critic."""
    warmup_steps: NonNegative = 0
    """First steps in which only the critic learns."""


class RunConfig(Section):
    """The run itself."""

    output_dir: str | None = None
    """Run directory; none: outputs/<run name>."""
    name: str | None = None
    """Run name; none: algorithm, model and start time."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Fixes data order, sampling and initial values."""
    save_every: Interval = 0
    """Steps between checkpoints; 0: about every 10 minutes; -1: a rolling one and the final."""
    eval_every: Interval = 10
    """Steps between evaluations; 0 or -1: only at the start and the end."""
    keep_checkpoints: Positive = 2
    """Newest checkpoints kept, besides the best."""
    resume: str = "never"
    """auto, never, a step number, or the path of a run or checkpoint."""
    merge_lora: bool = False
    """Also save the final model with the adapter merged in."""
    project: str | None = None
    """Project the trackers file the run under; none: rlcli."""
    loggers: list[Literal["console", "wandb", "tensorboard"]] = ["console"]
    """Where metrics go besides metrics.jsonl."""
    disk_budget: PositiveFloat | None = None
    """Gibibytes the run directory may take; fewer checkpoints are kept to stay within it."""
    preempt_exit_code: Annotated[int, Field(ge=0, le=255)] = 0
    """Exit code after SIGTERM, once the checkpoint is written."""
    lang: Literal["en", "zh"] = "en"
    """Language of the start banner, the errors and train's help."""


class Config(Section):
    """A whole run."""

    algorithm: AlgorithmConfig = AlgorithmConfig()
    model: ModelConfig = ModelConfig()
    lora: LoraConfig = LoraConfig()
    data: DataConfig = DataConfig()
    rollout: RolloutConfig = RolloutConfig()
    env: EnvConfig = EnvConfig()
    train: TrainConfig = TrainConfig()
    ref: RefConfig = RefConfig()
    critic: CriticConfig = CriticConfig()
    reward: RewardConfig = RewardConfig()
    run: RunConfig = RunConfig()

    @property
    def has_own_tasks(self) -> bool:
        """Whether an environment makes the rows."""
        return self.env.path is not None and not self.data.train

    @property
    def evaluates(self) -> bool:
        """Whether there may be rows to evaluate on."""
        return bool(self.data.val) or (self.has_own_tasks and self.env.val_tasks > 0)


def defaults() -> dict[str, Any]:
    """Dotted key to default value, for every setting."""
    return leaves(Config())


def field_of(key: str) -> FieldInfo:
    """The field that dotted `key` names."""
    *sections, name = key.split(".")
    section: type[Section] = Config
    for part in sections:
        section = cast("type[Section]", section.model_fields[part].annotation)
    return section.model_fields[name]
