"""The loop: sample, score, estimate, update. One policy version per step.

Every rank runs it on its share of the prompts. Rank 0 also logs, saves and decides when to stop.
"""

from __future__ import annotations

import gc
from contextlib import suppress

import torch

from rlcli.envs.scorer import turn_weight
from rlcli.errors import Paused, RewardError
from rlcli.rollout.collate import ScoredRollouts, collate
from rlcli.trainer.async_rollout import AsyncRollouts
from rlcli.trainer.rollout_step import StepCancelled, collect
from rlcli.trainer.run import Run
from rlcli.trainer.validation import evaluate_if_due
from rlcli.types import StepRecord


def train(run: Run) -> int:
    """Sample, score, estimate, update, until the last step or a request to stop; steps done."""
    gc.collect()
    gc.freeze()  # what was imported and built stays: looking through it takes 0.2 s each time
    try:
        return _train(run)
    finally:
        gc.unfreeze()
        run.checkpoints.close(run)


def _train(run: Run) -> int:
    done = run.checkpoints.restore(run)
    run.sampler.load_weights(run.engine.weights(), version=done)
    evaluate_if_due(run, done)
    ahead = AsyncRollouts(run) if run.config.rollout.async_steps else None
    while done < run.num_steps and not run.should_stop():
        torch.manual_seed(run.seed(done, "torch", run.ranks.rank))
        with suppress(StepCancelled), run.monitor.step(done, ahead or run.prompts) as record:
            with run.ranks.doing("reward"):
                collected = collect_or_restore(run, record, done, ahead)
            run.sampler.sleep()
            batch = collate(
                collected, needs=run.algorithm.needs, turn_weight=turn_weight(run.config)
            )
            batch = run.engine.annotate(batch, run.algorithm)
            advantages = run.algorithm.advantages(
                batch,
                all_reduce=run.engine.all_reduce,
                all_reduce_max=run.engine.all_reduce_max,
            )
            record.update(advantages.stats)
            record.update(run.engine.update(batch, advantages, run.algorithm, step=done))
            run.sampler.load_weights(run.engine.weights(), version=done + 1)
            run.monitor.rollouts(done, collected.seen.rollouts, collected.seen.rewards)
            done += 1
        if not run.should_stop():
            evaluate_if_due(run, done)
        with run.ranks.doing("saving"):
            run.checkpoints.save_if_due(done, run)
    if ahead is not None:
        ahead.give_up()
    with run.ranks.doing("saving"):
        run.checkpoints.finish(run, done)
    return done


def collect_or_restore(
    run: Run, record: StepRecord, done: int, ahead: AsyncRollouts | None = None
) -> ScoredRollouts:
    """The next prompts' rollouts; where there are none, the run stands as before the step.

    Raises: StepCancelled when a stop was asked for, and what the reward ended with; the run is
    saved before that.
    """
    before, scale = (ahead or run.prompts).state(), run.scorer.state()
    try:
        if ahead is not None:
            return ahead.collect(record, done)
        prompts = run.prompts.next(run.config.train.prompts_per_step)
        return collect(run, prompts, record, step=done)
    except (StepCancelled, Paused, RewardError):
        run.prompts.load_state(before)
        run.scorer.load_state(scale)
        run.checkpoints.save(done, run)
        raise
