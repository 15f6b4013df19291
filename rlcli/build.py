"""From a checked configuration to a Run: the only place that names concrete backends."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
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
from rlcli.models import build_models
from rlcli.monitor.console import RunConsole
from rlcli.monitor.health import Health
from rlcli.monitor.monitor import Monitor
from rlcli.monitor.run_dir import RunDir
from rlcli.monitor.signals import StopRequest
from rlcli.monitor.trackers import build_trackers
from rlcli.saving import Checkpoints

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    import torch

    from rlcli.algos.algorithm import Algorithm
    from rlcli.crew.lead import Crew
    from rlcli.engines.base import TrainEngine
    from rlcli.place import Place
    from rlcli.rewards.base import Scorer
    from rlcli.rollout.base import Sampler
    from rlcli.trainer import Run


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
    device = choose_device(resolved.config)
    resolved = preflight.settle_sampler(resolved, is_cuda=device.type == "cuda")
    config = resolved.config
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


def build_run(
    plan: Plan,
    run_dir: RunDir,
    resume: Resume,
    *,
    quiet: bool = False,
    crew: Crew | None = None,
) -> Run:
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
        return _build_run(plan, run_dir, resume, scorer, notes=notes, quiet=quiet, crew=crew)
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
    crew: Crew | None,
) -> Run:
    from rlcli.trainer import Run

    config = plan.config
    algorithm, engine, sampler, model_notes = _lead(
        plan,
        crew,
        run_dir.path,
        tell=lambda text: monitor.note(text),  # of later: there is no monitor yet
    )
    console = RunConsole(
        run_dir.console_log,
        num_steps=plan.num_steps,
        num_ranks=1 if crew is None else crew.size,
        quiet=quiet,
    )
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
    if crew is not None:
        crew.watch.tell = monitor.note
        monitor.on_phase = crew.watch.lead
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


def _lead(
    plan: Plan, crew: Crew | None, run_dir: Path, *, tell: Callable[[str], None]
) -> tuple[Algorithm, TrainEngine, Sampler, list[str]]:
    """What `_load` gives, as the loop sees it: of this process, or of all ranks."""
    size = 1 if crew is None else crew.size
    algorithm, engine, sampler, notes = _load(plan, 0, size, run_dir, tell=tell)
    if crew is None:
        return algorithm, engine, sampler, notes
    from rlcli.crew.lead import CrewEngine, CrewSampler

    rollout = plan.config.rollout
    width = rollout.tensor_parallel if rollout.engine == "vllm" else 1
    return algorithm, CrewEngine(crew, engine), CrewSampler(crew, sampler, width=width), notes


def _load(
    plan: Plan, rank: int, size: int, run_dir: Path, *, tell: Callable[[str], None]
) -> tuple[Algorithm, TrainEngine, Sampler, list[str]]:
    """(algorithm, engine, sampler, notes) of one of `size` ranks."""
    import torch

    from rlcli.algos.algorithm import Algorithm
    from rlcli.engines.ranks import Ranks

    config = plan.config
    torch.manual_seed(config.run.seed)
    algorithm = Algorithm(config, corrects_sampler=config.algorithm.corrects_sampler)
    return algorithm, *build_models(plan, algorithm, Ranks(rank, size), run_dir, tell=tell)


def serve_rank(plan: Plan, place: Place, connection: Connection) -> bool:
    """Build this rank's models, do what rank 0 says until it stops; whether all ended well."""
    from rlcli.crew.follow import follow
    from rlcli.crew.lines import speaker

    tell = speaker(plan.config.run.lang)
    algorithm, engine, sampler, _ = _load(plan, place.rank, place.size, place.run_dir, tell=tell)
    seed = (plan.config.run.seed, place.rank)
    return follow(connection, engine, sampler, algorithm, seed=seed, log=place.log)
