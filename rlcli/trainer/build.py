"""Builds a run from its plan: the only place that names concrete backends."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlcli.data.prompts import PromptStream
from rlcli.distributed.rank_env import LOOPBACK
from rlcli.envs.run import episode_sampler, episode_scorer
from rlcli.errors import (
    Paused,
    RewardServiceError,
)
from rlcli.monitor.console import RunConsole
from rlcli.monitor.health import Health
from rlcli.monitor.monitor import Monitor, NullMonitor
from rlcli.monitor.trackers import build_trackers
from rlcli.run_dir.checkpoint import Resume
from rlcli.run_dir.folder import RunDir
from rlcli.system.signals import StopRequest
from rlcli.trainer.build_engine import build_models
from rlcli.trainer.checkpointing import Checkpoints
from rlcli.trainer.run_plan import Plan

if TYPE_CHECKING:
    from rlcli.distributed.collectives import Ranks
    from rlcli.distributed.live_ranks import LiveRanks
    from rlcli.rewards.base import Peers, Scorer
    from rlcli.trainer.run import Run


def build_run(
    plan: Plan,
    run_dir: RunDir,
    resume: Resume,
    *,
    quiet: bool = False,
    ranks: LiveRanks | None = None,
    stop: StopRequest | None = None,
) -> Run:
    """Build this rank's run: first its reward, which fails more often, then its weights.

    ranks: None for a process that trains alone. stop: receives the signals that end the run early.

    Raises: RewardError when a judge or a reward model's server does not answer one call; Paused
    instead if the service may recover and the run has a checkpoint.
    """
    peers = None if ranks is None else _peers(plan, ranks)
    is_first = peers is None or peers.is_first
    is_scored = plan.environment is None or not plan.environment.facts.scores
    notes = _probe(plan, run_dir, resume) if is_first and is_scored else []
    scorer = _scorer(plan, run_dir, peers) if is_scored else None
    if plan.environment is not None or scorer is None:
        scorer = episode_scorer(scorer)
    try:
        return _build_run(
            plan, run_dir, resume, scorer, notes=notes, quiet=quiet, ranks=ranks, stop=stop
        )
    except BaseException:
        scorer.close()
        raise


def _scorer(plan: Plan, run_dir: RunDir, peers: Peers | None) -> Scorer:
    from rlcli.rewards import build_scorer

    config = plan.config
    return build_scorer(
        config.reward,
        log=run_dir.path / "reward.log",
        run_dir=run_dir.path,
        env=os.environ,
        lang=config.run.lang,
        model_dir=plan.reward_dir,
        device=plan.device,
        peers=peers,
    )


def _probe(plan: Plan, run_dir: RunDir, resume: Resume) -> list[str]:
    """Notes of the services that score. Raises: as `build_run`."""
    from rlcli.rewards import probe_reward

    config = plan.config
    try:
        return probe_reward(config.reward, env=os.environ, lang=config.run.lang)
    except RewardServiceError as error:
        if resume == "no" or not run_dir.has_checkpoint:
            raise
        raise Paused(f"{error}\nResume with --resume auto once the service answers.") from error


def _peers(plan: Plan, ranks: LiveRanks) -> Peers:
    """The other ranks, for scorers."""
    from rlcli.distributed.process_group import reachable_address
    from rlcli.rewards.base import Peers

    env = ranks.env
    host = LOOPBACK if env.local_world_size == env.world_size else ""
    if ranks.is_first:
        host = host or reachable_address(env.master_addr)
    return Peers(
        is_first=ranks.is_first,
        local_size=env.local_world_size or 1,
        host=host,
        gather=ranks.gather,
        first=ranks.first,
        prompts=[*plan.train.prompts, *(plan.val.prompts if plan.val else ())],
    )


def _build_run(
    plan: Plan,
    run_dir: RunDir,
    resume: Resume,
    scorer: Scorer,
    *,
    notes: Sequence[str],
    quiet: bool,
    ranks: Ranks | None,
    stop: StopRequest | None,
) -> Run:
    import torch

    from rlcli.algos.algorithm import Algorithm
    from rlcli.distributed.collectives import ALONE
    from rlcli.rollout.native import NativeSampler
    from rlcli.trainer.run import Run

    config, ranks = plan.config, ranks or ALONE
    torch.manual_seed(config.run.seed)
    algorithm = Algorithm(config, corrects_sampler=config.algorithm.corrects_sampler)
    engine, sampler, model_notes = build_models(plan, algorithm, ranks, run_dir.path)
    if plan.environment is not None and plan.dialogue is not None:
        log = run_dir.path / "env.log"
        assert isinstance(sampler, NativeSampler)  # preflight lets no other in
        sampler = episode_sampler(sampler, plan.environment, plan.dialogue, config, log=log)
    if ranks.is_first:
        monitor, tracker_notes = _monitor(
            plan, run_dir, stop or StopRequest(), quiet=quiet, num_ranks=ranks.size
        )
        for note in [*notes, *model_notes, *tracker_notes]:
            monitor.note(note)
    else:
        monitor = NullMonitor()
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
            keep=config.run.keep_checkpoints,
            resume=resume,
            disk_budget=config.run.disk_budget,
        ),
        monitor=monitor,
        tokenizer=plan.tokenizer,
        ranks=ranks,
    )


def _monitor(
    plan: Plan, run_dir: RunDir, stop: StopRequest, *, quiet: bool, num_ranks: int
) -> tuple[Monitor, list[str]]:
    """(the monitor of rank 0, notes of the trackers)."""
    config = plan.config
    console = RunConsole(
        run_dir.console_log, num_steps=plan.num_steps, num_ranks=num_ranks, quiet=quiet
    )
    trackers, notes = build_trackers(config.run, run_dir)
    monitor = Monitor(
        run_dir,
        console,
        stop,
        prompts_per_epoch=len(plan.train.prompts),
        epochs=config.train.epochs,
        trackers=trackers,
        health=Health(config),
        lang=config.run.lang,
    )
    return monitor, notes
