"""The loop: sample, score, estimate, update. One policy version per step."""

from __future__ import annotations

import gc
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from rlcli.algos.algorithm import Algorithm
from rlcli.collect import (
    MAX_UNSCORED_SHARE,
    Begun,
    Collected,
    StepAbandoned,
    begin,
    collate,
    collect,
    count_usage,
    end,
    note_judge,
    score,
)
from rlcli.config.schema import Config
from rlcli.data.prompts import PromptStream
from rlcli.engines.base import TrainEngine
from rlcli.errors import Paused, RewardError
from rlcli.monitor.monitor import Monitor
from rlcli.rewards import PASSED, pass_scores
from rlcli.rewards.base import Scorer
from rlcli.rollout.base import Sampler, SamplingParams
from rlcli.saving import Checkpoints
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
    monitor: Monitor
    tokenizer: Any

    def seed(self, step: int, *purpose: str | int) -> int:
        """A seed of its own for every step and purpose: nothing random outlives a step."""
        return zlib.crc32(repr((self.config.run.seed, step, *purpose)).encode())


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
    while done < run.num_steps and not run.monitor.stop_requested:
        torch.manual_seed(run.seed(done, "torch"))
        with suppress(StepAbandoned), run.monitor.step(done, ahead or run.prompts) as record:
            with run.monitor.phase("reward"):
                collected = collect_or_go_back(run, record, done, ahead)
            run.sampler.rest()
            batch = collate(collected, needs=run.algorithm.needs)
            batch = run.engine.annotate(batch, run.algorithm)
            advantages = run.algorithm.advantages(batch, all_reduce=run.engine.all_reduce)
            record.update(advantages.stats)
            record.update(run.engine.update(batch, advantages, run.algorithm, step=done))
            run.sampler.load_weights(run.engine.weights(), version=done + 1)
            run.monitor.rollouts(done, collected.rollouts, collected.rewards)
            done += 1
        if not run.monitor.stop_requested:
            evaluate_if_due(run, done)
        with run.monitor.phase("saving"):
            run.checkpoints.save_if_due(done, run)
    if ahead is not None:
        ahead.give_up()
    with run.monitor.phase("saving"):
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
        is_due = is_evaluation_due(run, step) or run.checkpoints.is_due(step)
        return step < run.num_steps and not run.monitor.stop_requested and not is_due


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
    evaluated = {evaluated for evaluated, _ in run.monitor.held_out_rewards}
    if is_evaluation_due(run, step) and step not in evaluated:
        try:
            with suppress(StepAbandoned):
                evaluate(run, step=step)
        except Paused:
            run.checkpoints.save(step, run)
            raise


def evaluate(run: Run, *, step: int) -> StepRecord:
    """Held-out score of the policy: mean reward and pass@1 over val_n rollouts per prompt.

    Raises: StepAbandoned when a stop was asked for while rewards were still missing.
    """
    if not run.val_prompts:
        return {}
    rollout = run.config.rollout
    params = SamplingParams(
        n=rollout.val_n,
        max_tokens=run.config.data.max_response_tokens,
        temperature=rollout.val_temperature,
    )
    with run.monitor.phase("evaluation"), run.monitor.evaluation(step) as record:
        rollouts = run.sampler.generate(run.val_prompts, params, seed=run.seed(0, "evaluate"))
        rewards = run.scorer.settle(score(run, rollouts), learns=False)
        values = [reward.value for reward in rewards if reward.value is not None]
        rate = _pass_rate(run, rewards)
        if rate is not None:
            record["eval/pass@1"] = rate
        if values:
            record["eval/reward_mean"] = sum(values) / len(values)
        count_usage(run, record, rewards, prefix="eval/")
        note_judge(run, record, rollouts, rewards, prefix="eval/")
        record["eval/rows"] = len(run.val_prompts)
        record["eval/unscored"] = len(rewards) - len(values)
        lengths = [len(r.token_ids) for r in rollouts]
        record["eval/response_length_mean"] = sum(lengths) / len(lengths)
    return dict(record)


def _pass_rate(run: Run, rewards: Sequence[Reward]) -> float | None:
    """pass@1; None where the reward has no scale for it, or too many rollouts are unscored."""
    scores = pass_scores(run.config.reward, rewards)
    if scores is None:
        return None
    scored = [score for score in scores if score is not None]
    if not scored or len(scores) - len(scored) > MAX_UNSCORED_SHARE * len(scores):
        return None
    return sum(score >= PASSED for score in scored) / len(scored)
