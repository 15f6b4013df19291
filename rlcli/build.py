"""From a checked configuration to a Run: the only place that names concrete backends."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcli import preflight
from rlcli.algos.table import ESTIMATORS, LOSSES
from rlcli.checkpoint import Resume
from rlcli.config.resolved import Resolved
from rlcli.config.schema import Config
from rlcli.data.prompts import EncodedPrompts, PromptStream, encode_prompts
from rlcli.errors import ConfigError, DeviceNotFoundError, Paused, RewardServiceError
from rlcli.inputs import (
    check_context,
    check_rewards,
    find_critic,
    find_model,
    find_reward_model,
    read_data,
)
from rlcli.machine import keep_freed_memory, limit_kernels, usable_cores
from rlcli.monitor.console import RunConsole
from rlcli.monitor.health import Health
from rlcli.monitor.monitor import Monitor
from rlcli.monitor.run_dir import RunDir
from rlcli.monitor.signals import StopRequest
from rlcli.monitor.trackers import build_trackers
from rlcli.saving import Checkpoints

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from rlcli.causal_lm import CausalLM
    from rlcli.engines.critic import Critic
    from rlcli.rewards.base import Scorer
    from rlcli.trainer import Run


SINGLE_THREAD_PARAMETERS = 20_000_000


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
    device: torch.device
    num_steps: int
    steps_per_epoch: int
    notes: list[str]

    @property
    def config(self) -> Config:
        """The settings as adjusted to the data."""
        return self.resolved.config


def make_plan(resolved: Resolved) -> Plan:
    """Settings, model config, tokenizer and data, all checked against each other.

    Raises: UsageError (ConfigError, ModelError, DataError, RewardError) with the cure.
    """
    resolved = preflight.check_engines(preflight.check(resolved))
    config = resolved.config
    device = choose_device(config)
    if config.model.compile:
        from rlcli.compiled import check_compiler

        check_compiler(device, resolved.where("model.compile"))
    train_rows = read_data(config, config.data.train)
    val_rows = read_data(config, config.data.val) if config.data.val else []
    needs = _needs(resolved)
    reward_dir = find_reward_model(resolved)
    reward_notes = check_rewards(resolved, [train_rows, val_rows], reward_dir, os.environ)
    model_dir = find_model(config, config.model.path)

    from rlcli.causal_lm import (
        check_architecture,
        load_tokenizer,
        positions_of,
        read_model_config,
    )

    trust = config.model.trust_remote_code
    model_config = read_model_config(str(model_dir), trust_remote_code=trust)
    check_architecture(model_config)
    tokenizer = load_tokenizer(str(model_dir), trust_remote_code=trust)
    limits = {
        "max_prompt_tokens": config.data.max_prompt_tokens,
        "filter_overlong": config.data.filter_overlong,
        "truncation": config.data.truncation,
    }
    train = encode_prompts(train_rows, tokenizer, **limits)
    val = encode_prompts(val_rows, tokenizer, **limits) if val_rows else None
    check_context(resolved, positions_of(model_config))
    config, notes = preflight.batch_arithmetic(config, len(train.prompts))
    batches = preflight.batching(config, len(train.prompts))
    return Plan(
        resolved=resolved.shrink(config),
        model_dir=model_dir,
        critic_dir=find_critic(resolved, model_dir, model_config) if "critic" in needs else None,
        reward_dir=reward_dir,
        tokenizer=tokenizer,
        model_config=model_config,
        train=train,
        val=val,
        device=device,
        num_steps=batches.num_steps,
        steps_per_epoch=batches.steps_per_epoch,
        notes=[*resolved.notes, *reward_notes, *train.notes, *notes],
    )


def _needs(resolved: Resolved) -> frozenset[str]:
    """What the estimator and the loss ask for, a user's own too.

    Raises: ConfigError for a user's function that no run can serve.
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
    """cuda, mps or cpu. Raises: ConfigError when the one asked for is not there."""
    import torch

    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    wanted = config.train.device
    if wanted == "auto":
        return torch.device(next((name for name, here in found.items() if here), "cpu"))
    if wanted != "cpu" and not found[wanted]:
        raise DeviceNotFoundError(
            f"train.device={wanted}, but torch {torch.__version__} finds no such device.\n"
            "Use train.device=auto, or install a torch build for your hardware."
        )
    return torch.device(wanted)


def set_up_cpu(device: torch.device, num_parameters: int) -> None:
    """Threads: one for tiny models, else the physical cores; OMP_NUM_THREADS wins. And memory.

    Two threads that wait for each other on small matrices are slower than one. Memory that was
    freed is kept for the next tensor, instead of being cleared by the kernel each time.
    """
    import torch

    if device.type != "cpu":
        return
    keep_freed_memory()
    limit_kernels()
    if "OMP_NUM_THREADS" not in os.environ:
        is_tiny = num_parameters < SINGLE_THREAD_PARAMETERS
        torch.set_num_threads(1 if is_tiny else usable_cores())


def compute_dtype(config: Config, device: torch.device) -> torch.dtype:
    """What model.dtype means on this device."""
    import torch

    wanted = config.model.dtype
    is_half = wanted == "bfloat16" or (wanted == "auto" and device.type == "cuda")
    return torch.bfloat16 if is_half else torch.float32


def stop_and_pad(folder: Path, tokenizer: Any, model_config: Any) -> tuple[tuple[int, ...], int]:
    """(ids that end a response, the id that fills rows) of a model's folder."""
    from rlcli.causal_lm import eos_token_ids

    eos = eos_token_ids(str(folder), tokenizer, model_config)
    pad = tokenizer.pad_token_id
    return eos, eos[0] if pad is None else pad


def build_run(plan: Plan, run_dir: RunDir, resume: Resume, *, quiet: bool = False) -> Run:
    """The run with its weights loaded; the reward first, which is the likelier to fail.

    Raises: RewardError when a judge or a reward model's server does not answer one call; Paused
    where that may pass and a run with a checkpoint waits for it.
    """
    from rlcli.rewards import build_scorer, probe_reward

    config = plan.config
    lang = config.run.lang
    try:
        notes = probe_reward(config.reward, env=os.environ, lang=lang)
    except RewardServiceError as error:
        if resume == "no" or not run_dir.has_checkpoint:
            raise
        raise Paused(f"{error}\nResume with --resume auto once the service answers.") from error
    scorer = build_scorer(
        config.reward,
        log=run_dir.path / "reward.log",
        run_dir=run_dir.path,
        env=os.environ,
        lang=lang,
        model_dir=plan.reward_dir,
        device=plan.device,
    )
    try:
        return _build_run(plan, run_dir, resume, scorer, notes=notes, quiet=quiet)
    except BaseException:
        scorer.close()
        raise


def _build_run(
    plan: Plan,
    run_dir: RunDir,
    resume: Resume,
    scorer: Scorer,
    *,
    notes: Sequence[str],
    quiet: bool,
) -> Run:
    import torch

    from rlcli.algos.algorithm import Algorithm
    from rlcli.trainer import Run

    config = plan.config
    torch.manual_seed(config.run.seed)
    device = plan.device
    algorithm = Algorithm(config, corrects_sampler=config.algorithm.corrects_sampler)
    eos, pad_token_id = stop_and_pad(plan.model_dir, plan.tokenizer, plan.model_config)
    engine, sampler, model_notes = _build_models(plan, device, algorithm, eos, pad_token_id)
    console = RunConsole(run_dir.console_log, num_steps=plan.num_steps, quiet=quiet)
    trackers, tracker_notes = build_trackers(config.run, run_dir)
    monitor = Monitor(
        run_dir,
        console,
        StopRequest(),
        prompts_per_epoch=len(plan.train.prompts),
        epochs=config.train.epochs,
        trackers=trackers,
        health=Health(config),
        lang=config.run.lang,
    )
    for note in [*notes, *model_notes, *tracker_notes]:
        monitor.note(note)
    return Run(
        config=config,
        num_steps=plan.num_steps,
        prompts=PromptStream(plan.train.prompts, seed=config.run.seed, shuffle=config.data.shuffle),
        val_prompts=plan.val.prompts if plan.val else (),
        sampler=sampler,
        scorer=scorer,
        engine=engine,
        algorithm=algorithm,
        checkpoints=Checkpoints(
            run_dir.checkpoints,
            save_every=config.run.save_every,
            keep=config.run.keep,
            resume=resume,
            disk_budget=config.run.disk_budget,
        ),
        monitor=monitor,
        tokenizer=plan.tokenizer,
    )


def _build_models(
    plan: Plan, device: torch.device, algorithm: Any, eos: Sequence[int], pad_token_id: int
) -> tuple[Any, Any, list[str]]:
    """(engine, sampler, notes). Trained weights are float32; bfloat16 is how they compute."""
    import torch

    from rlcli.causal_lm import enable_gradient_checkpointing, load_causal_lm
    from rlcli.engines.lora import add_lora
    from rlcli.engines.torch_engine import TorchEngine
    from rlcli.rollout.native import NativeSampler

    config = plan.config
    compute = compute_dtype(config, device)
    is_half = compute is torch.bfloat16
    autocast = compute if is_half else None
    uses_lora = config.lora.rank > 0

    def load(dtype: torch.dtype) -> CausalLM:
        trust = config.model.trust_remote_code
        path = str(plan.model_dir)
        return load_causal_lm(path, dtype=dtype, device=device, trust_remote_code=trust)

    policy = load(compute if uses_lora else torch.float32)
    set_up_cpu(device, policy.model.num_parameters())
    sampled = load(compute) if is_half and not uses_lora else policy
    reference = None
    if algorithm.needs_reference and not uses_lora:
        # float32 under autocast like the policy: only then is the KL at the start exactly 0
        reference = copy.deepcopy(policy)
        reference.model.requires_grad_(False).eval()
    peft_model = add_lora(policy.model, config.lora) if uses_lora else None
    if config.model.gradient_checkpointing:
        enable_gradient_checkpointing(policy.model)
    critic = _build_critic(plan, pad_token_id) if plan.critic_dir else None
    if config.model.compile:
        _compile(policy.model, reference and reference.model, critic and critic.body)
    sampler = NativeSampler(
        sampled,
        plan.tokenizer,
        eos_token_ids=eos,
        pad_token_id=pad_token_id,
        max_rows=config.rollout.max_rows,
        shares_weights=sampled is policy,
        autocast_dtype=autocast if sampled is policy else None,
    )
    engine = TorchEngine(
        config,
        policy,
        total_steps=plan.num_steps,
        pad_token_id=pad_token_id,
        sampler_is_exact=sampler.is_exact and not is_half and not config.rollout.async_steps,
        autocast_dtype=autocast,
        peft_model=peft_model,
        reference=reference,
        critic=critic,
    )
    return engine, sampler, policy.notes


def _compile(*models: PreTrainedModel | None) -> None:
    from rlcli.compiled import compile_layers

    for model in models:
        if model is not None:
            compile_layers(model)


def _build_critic(plan: Plan, pad_token_id: int) -> Critic:
    from rlcli.causal_lm import enable_gradient_checkpointing
    from rlcli.engines.critic import load_critic

    critic = load_critic(
        str(plan.critic_dir),
        device=plan.device,
        pad_token_id=pad_token_id,
        trust_remote_code=plan.config.model.trust_remote_code,
    )
    if plan.config.model.gradient_checkpointing:
        enable_gradient_checkpointing(critic.body)
    return critic
