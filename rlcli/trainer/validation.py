"""Held-out evaluation during training."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from statistics import fmean

from rlcli.envs.measures import measure_episodes
from rlcli.envs.scorer import accuracy_of
from rlcli.errors import Paused
from rlcli.monitor.held_out import half_width
from rlcli.rewards import PASSED
from rlcli.rollout.base import SamplingParams
from rlcli.rollout.step_view import StepView, show
from rlcli.trainer.rollout_step import (
    MAX_UNSCORED_SHARE,
    StepCancelled,
    count_usage,
    note_judge,
    sample,
    score,
)
from rlcli.trainer.run import Run
from rlcli.types import Reward, StepRecord


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
            with suppress(StepCancelled):
                evaluate(run, step=step)
        except Paused:
            run.checkpoints.save(step, run)
            raise


def evaluate(run: Run, *, step: int) -> StepRecord:
    """Held-out score of the policy: mean reward and pass@1 over val_n rollouts per prompt.

    Returns: the record on rank 0, {} elsewhere.
    Raises: StepCancelled when a stop was asked for while rewards were still missing.
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
        rewards = run.scorer.normalize(score(run, rollouts), update_stats=False)
        seen = show(run.ranks, run.val_prompts, rollouts, rewards)
        metrics = run.scorer.metrics()
        if run.ranks.is_first:
            _record_evaluation(run, record, seen)
            note_judge(run, record, seen, metrics, prefix="eval/")
    return dict(record)


def _record_evaluation(run: Run, record: StepRecord, seen: StepView) -> None:
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
    episodes = measure_episodes(seen.rollouts, seen.rewards)
    record.update({f"eval/{name}": value for name, value in episodes.items()})


def _means_by_prompt(run: Run, rewards: Sequence[Reward], *, is_rate: bool) -> list[float]:
    """Mean reward, or share of passed responses, of each prompt that has a score."""
    scores = _accuracy(run, rewards) if is_rate else None
    values = [reward.value for reward in rewards] if scores is None else scores
    n = run.config.rollout.val_n  # a prompt's rollouts are adjacent
    groups = ([v for v in values[i : i + n] if v is not None] for i in range(0, len(values), n))
    return [fmean(v >= PASSED if is_rate else v for v in group) for group in groups if group]


def _accuracy(run: Run, rewards: Sequence[Reward]) -> list[float | None] | None:
    return accuracy_of(run.config, rewards, scored_by_env=run.scored_by_env)


def _pass_rate(run: Run, rewards: Sequence[Reward]) -> float | None:
    """pass@1; None where the reward has no scale for it, or too many rollouts are unscored."""
    scores = _accuracy(run, rewards)
    if scores is None:
        return None
    scored = [score for score in scores if score is not None]
    if not scored or len(scores) - len(scored) > MAX_UNSCORED_SHARE * len(scores):
        return None
    return sum(score >= PASSED for score in scored) / len(scored)
