"""The loop: sample, score, estimate, update. One policy version per step.

Every rank runs it on its share of the prompts. Rank 0 also logs, saves and decides when to stop.
"""

from __future__ import annotations

import gc
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch

from rlcli.algos.algorithm import Algorithm
from rlcli.config.schema import Config
from rlcli.data.prompts import PromptStream
from rlcli.distributed.collectives import ALONE, Ranks
from rlcli.engines.base import TrainEngine
from rlcli.errors import Paused, RewardError
from rlcli.monitor.held_out import half_width
from rlcli.monitor.monitor import Monitor, SilentMonitor
from rlcli.monitor.step_view import Seen, show
from rlcli.rewards import PASSED, accuracy_scores
from rlcli.rewards.base import Scorer
from rlcli.rollout.base import Sampler, SamplingParams
from rlcli.rollout.collate import Collected, collate
from rlcli.trainer.checkpointing import Checkpoints
from rlcli.trainer.rollout_step import (
    MAX_UNSCORED_SHARE,
    Begun,
    StepAbandoned,
    begin,
    collect,
    count_usage,
    end,
    note_judge,
    sample,
    score,
)
from rlcli.types import Prompt, Reward, StepRecord


@dataclass(slots=True, kw_only=True)
class Run:
    """Everything a run is made of. Built in `build`, used here."""

    config: Config
    num_steps: int
    prompts: PromptStream
    val_prompts: Sequence[Prompt]
    sampler: Sampler
    scorer: Scorer
    engine: TrainEngine
    algorithm: Algorithm
    checkpoints: Checkpoints
    monitor: Monitor | SilentMonitor
    tokenizer: Any
    ranks: Ranks = ALONE

    def seed(self, step: int, *purpose: str | int) -> int:
        """A seed of its own for every step and purpose: nothing random outlives a step."""
        return zlib.crc32(repr((self.config.run.seed, step, *purpose)).encode())

    def should_stop(self) -> bool:
        """Whether rank 0 was asked to stop. Every rank calls this at the same point."""
        return self.ranks.first(self.monitor.stop_requested)


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
    ahead = Ahead(run) if run.config.rollout.async_steps else None
    while done < run.num_steps and not run.should_stop():
        torch.manual_seed(run.seed(done, "torch", run.ranks.rank))
        with suppress(StepAbandoned), run.monitor.step(done, ahead or run.prompts) as record:
            with run.ranks.doing("reward"):
                collected = collect_or_go_back(run, record, done, ahead)
            run.sampler.rest()
            batch = collate(collected, needs=run.algorithm.needs)
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


def collect_or_go_back(
    run: Run, record: StepRecord, done: int, ahead: Ahead | None = None
) -> Collected:
    """The next prompts' rollouts; where there are none, the run stands as before the step.

    Raises: StepAbandoned when a stop was asked for, and what the reward ended with; the run is
    saved before that.
    """
    before, scale = (ahead or run.prompts).state(), run.scorer.state()
    try:
        if ahead is not None:
            return ahead.collect(record, done)
        prompts = run.prompts.next(run.config.train.prompts_per_step)
        return collect(run, prompts, record, step=done)
    except (StepAbandoned, Paused, RewardError):
        run.prompts.load_state(before)
        run.scorer.load_state(scale)
        run.checkpoints.save(done, run)
        raise


class Ahead:
    """Samples the next step before the rewards of this one are waited for: one policy older.

    Nothing is ahead of a checkpoint, an evaluation or the end: a run that is resumed samples what
    the uninterrupted one did.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._next: Begun | None = None
        self._before: dict[str, int] = {}

    def state(self) -> dict[str, int]:
        """Where the prompts stand without those of the step that is ahead."""
        return self._before if self._next else self._run.prompts.state()

    @property
    def epoch(self) -> int:
        """Passes over the data that are complete without it."""
        return self.state()["epoch"]

    def collect(self, record: StepRecord, step: int) -> Collected:
        """This step's rollouts with their rewards. Where it fails, nothing more is ahead."""
        begun = self._next or self._begin(record, step)
        before = self._run.prompts.state()
        following = self._begin(record, step + 1) if self._may_begin(step + 1) else None
        collected = end(self._run, begun, record, step=step)
        self._next, self._before = following, before
        return collected

    def give_up(self) -> None:
        """The prompts that were sampled ahead are the next ones again."""
        self._run.prompts.load_state(self.state())
        self._next = None

    def _begin(self, record: StepRecord, step: int) -> Begun:
        prompts = self._run.prompts.next(self._run.config.train.prompts_per_step)
        return begin(self._run, prompts, record, step=step)

    def _may_begin(self, step: int) -> bool:
        """Whether `step` is still to come, and nothing is due before it."""
        run = self._run
        is_due = is_evaluation_due(run, step) or run.ranks.first(run.checkpoints.is_due(step))
        return step < run.num_steps and not is_due and not run.should_stop()


def is_evaluation_due(run: Run, step: int) -> bool:
    """At the start, every eval_every steps and at the end, where there are held-out prompts."""
    every = run.config.run.eval_every
    is_due = step in (0, run.num_steps) or (every > 0 and step % every == 0)
    return is_due and bool(run.val_prompts)


def evaluate_if_due(run: Run, step: int) -> None:
    """Evaluate where it is due; no step twice.

    A request to stop gives an evaluation up that waits for its rewards: it is done on resume.
    Raises: Paused when a judge cannot be asked any more; the run is saved before that.
    """
    is_new = step not in {evaluated for evaluated, _ in run.monitor.held_out_rewards}
    if is_evaluation_due(run, step) and run.ranks.first(is_new):
        try:
            with suppress(StepAbandoned):
                evaluate(run, step=step)
        except Paused:
            run.checkpoints.save(step, run)
            raise


def evaluate(run: Run, *, step: int) -> StepRecord:
    """Held-out score of the policy: mean reward and pass@1 over val_n rollouts per prompt.

    Returns: the record on rank 0, {} elsewhere.
    Raises: StepAbandoned when a stop was asked for while rewards were still missing.
    """
    if not run.val_prompts:
        return {}
    rollout = run.config.rollout
    params = SamplingParams(
        n=rollout.val_n,
        max_tokens=run.config.data.max_response_tokens,
        temperature=rollout.val_temperature,
        keep_special_tokens=run.config.reward.keep_special_tokens,
        stop=tuple(rollout.stop),
    )
    with run.ranks.doing("evaluation"), run.monitor.evaluation(step) as record:
        rollouts = sample(run, run.val_prompts, params, seed=run.seed(0, "evaluate"))
        rewards = run.scorer.settle(score(run, rollouts), learns=False)
        seen = show(run.ranks, run.val_prompts, rollouts, rewards)
        metrics = run.scorer.metrics()
        if run.ranks.is_first:
            _record_evaluation(run, record, seen)
            note_judge(run, record, seen, metrics, prefix="eval/")
    return dict(record)


def _record_evaluation(run: Run, record: StepRecord, seen: Seen) -> None:
    values = [reward.value for reward in seen.rewards if reward.value is not None]
    rate = _pass_rate(run, seen.rewards)
    if rate is not None:
        record["eval/pass@1"] = rate
    if values:
        is_rate = rate is not None
        means = _means_by_prompt(run, seen.rewards, is_rate=is_rate)
        record["eval/ci95"] = half_width(means, is_rate=is_rate)
        record["eval/reward_mean"] = sum(values) / len(values)
    count_usage(run, record, seen.rewards, prefix="eval/")
    record["eval/rows"] = len(run.val_prompts)
    record["eval/unscored"] = len(seen.rewards) - len(values)
    lengths = [rollout.num_tokens for rollout in seen.rollouts]
    record["eval/response_length_mean"] = sum(lengths) / len(lengths)


def _means_by_prompt(run: Run, rewards: Sequence[Reward], *, is_rate: bool) -> list[float]:
    """Mean reward, or share of passed responses, of each prompt that has a score."""
    scores = accuracy_scores(run.config.reward, rewards) if is_rate else None
    values = [reward.value for reward in rewards] if scores is None else scores
    n = run.config.rollout.val_n  # a prompt's rollouts are adjacent
    groups = ([v for v in values[i : i + n] if v is not None] for i in range(0, len(values), n))
    return [fmean(v >= PASSED if is_rate else v for v in group) for group in groups if group]


def _pass_rate(run: Run, rewards: Sequence[Reward]) -> float | None:
    """pass@1; None where the reward has no scale for it, or too many rollouts are unscored."""
    scores = accuracy_scores(run.config.reward, rewards)
    if scores is None:
        return None
    scored = [score for score in scores if score is not None]
    if not scored or len(scores) - len(scored) > MAX_UNSCORED_SHARE * len(scores):
        return None
    return sum(score >= PASSED for score in scored) / len(scored)
