"""The rollouts and rewards of one step: sampling with concurrent scoring, retries and refills.

Every rank samples, scores and keeps its share of the prompts. Decisions for all ranks follow from
gathered numbers, by the same code on every rank.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, Future, wait
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from rlcli.distributed.collectives import partition
from rlcli.envs.agent_run import is_agent
from rlcli.envs.dialogue import CANNOT_SHOW
from rlcli.envs.measures import measure_episodes
from rlcli.errors import Paused, RankError, RewardError, RlcliError
from rlcli.rewards.measures import judge_part, measure_judge
from rlcli.rollout.base import OnFinish, SamplingParams
from rlcli.rollout.collate import (
    ScoredRollouts,
    check_parts,
    groups_of,
    kinds_of_parts,
    with_all_parts,
)
from rlcli.rollout.step_view import StepView, show
from rlcli.types import Prompt, Reward, Rollout, StepRecord

if TYPE_CHECKING:
    from rlcli.trainer.run import Run

LOG = logging.getLogger(__name__)


MAX_UNSCORED_SHARE = 0.2
HOLD_TRIES = 3
STOP_PATIENCE_S = 5.0
USAGE = ("calls", "input_tokens", "output_tokens", "cost_usd")


class StepCancelled(Exception):  # no error: the step is done again on resume
    """A stop was asked for while the rewards of a step or an evaluation were still missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """This rank's rollouts, and their pending rewards. order: the prompts of all ranks."""

    rollouts: Sequence[Rollout] = ()
    rewards: Sequence[Future[Reward]] = ()
    order: Sequence[Prompt] = ()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingRollouts:
    """A step that is sampled and being scored. greedy: empty unless the estimator needs it."""

    sampled: Submitted
    greedy: Submitted
    canaries: Sequence[Future[Reward]]


def collect(
    run: Run, prompts: Sequence[Prompt], record: StepRecord, *, step: int
) -> ScoredRollouts:
    """Scored rollouts of `prompts`; dynamic sampling adds prompts until enough have mixed scores.

    Raises: RewardError or Paused when the reward leaves too many rollouts unscored three times.
    """
    return end(run, begin(run, prompts, record, step=step), record, step=step)


def begin(run: Run, prompts: Sequence[Prompt], record: StepRecord, *, step: int) -> PendingRollouts:
    """Sample `prompts` by the sampler's current weights, and submit each rollout to the scorer."""
    try:
        canaries = run.scorer.canaries(step, prompts)
    except RlcliError as error:  # `end` raises it, on all ranks together
        canaries = [_failed(error)]
    sampled, greedy = _sample(run, prompts, record, seed=run.seed(step, "sample"))
    return PendingRollouts(sampled=sampled, greedy=greedy, canaries=canaries)


def end(run: Run, begun: PendingRollouts, record: StepRecord, *, step: int) -> ScoredRollouts:
    """Wait for the rewards of a begun step; dynamic sampling adds prompts by current weights.

    Raises: RewardError or Paused when the reward leaves too many rollouts unscored three times.
    """
    settings = run.config.algorithm
    kept = drawn = _scored(run, begun.sampled, begun.greedy, record)
    if settings.dynamic_sampling:
        wanted = run.config.train.prompts_per_step
        kept, scores = _without_ties(run, drawn)
        rounds = 1
        while len(kept.order) < wanted and rounds <= settings.max_resample_rounds:
            fresh = run.prompts.next(wanted)
            drawn = _scored(
                run, *_sample(run, fresh, record, seed=run.seed(step, "sample", rounds)), record
            )
            some, more = _without_ties(run, drawn)
            kept, scores = _joined(kept, some, wanted), scores + more
            rounds += 1
        record["dynamic_sampling/rounds"] = rounds
        record["dynamic_sampling/kept_prompts"] = len(kept.order)
        record["dynamic_sampling/drawn_reward_mean"] = sum(scores) / max(1, len(scores))
        # a step of nothing but ties still counts: its advantages are 0
        kept = kept if kept.order else drawn
    if "parts" in run.algorithm.needs:
        kinds = _kinds_of_all(run, kept)
        # a step in which no environment gave a part has those that are weighed
        kept = with_all_parts(kept, kinds if any(kinds) else {(*run.config.reward.weights,)})
        check_parts(_kinds_of_all(run, kept))
    judged, metrics = _await(run, begun.canaries), run.scorer.metrics()
    kept = replace(kept, seen=show(run.ranks, kept.order, kept.rollouts, kept.rewards))
    if run.ranks.is_first:
        _record_rollouts(kept.seen, record)
        if run.config.rollout.async_steps:
            ages = [step - rollout.policy_version for rollout in kept.seen.rollouts]
            record["sampler/staleness"] = sum(ages) / len(ages)
        count_usage(run, record, judged)
        note_judge(run, record, kept.seen, metrics, canaries=judged)
    return kept


def _kinds_of_all(run: Run, kept: ScoredRollouts) -> set[tuple[str, ...]]:
    """The different sets of parts among the scored rollouts of all ranks."""
    return set().union(*run.ranks.gather(kinds_of_parts(kept.rewards)))


def _sample(
    run: Run, prompts: Sequence[Prompt], record: StepRecord, *, seed: int
) -> tuple[Submitted, Submitted]:
    """(sampled, greedy) rollouts; greedy ones only if the estimator needs them."""
    config = run.config
    params = SamplingParams(
        n=config.rollout.n,
        max_tokens=config.data.max_response_tokens,
        temperature=config.rollout.temperature,
        top_p=config.rollout.top_p,
        top_k=config.rollout.top_k,
        keep_special_tokens=config.reward.keep_special_tokens,
        stop=tuple(config.rollout.stop),
    )
    started = time.perf_counter()
    sampled = _submit(run, prompts, params, seed=seed)
    greedy = Submitted()
    if "greedy" in run.algorithm.needs:
        greedy_params = replace(params, n=1, temperature=0.0, top_p=1.0, top_k=-1)
        greedy = _submit(run, prompts, greedy_params, seed=seed)
    seconds = time.perf_counter() - started
    LOG.debug("%d rollouts sampled in %.2f s", len(sampled.rollouts), seconds)
    _add(record, "time/sample_s", seconds)
    return replace(sampled, seconds=seconds), greedy


def _submit(run: Run, prompts: Sequence[Prompt], params: SamplingParams, *, seed: int) -> Submitted:
    """Each rollout goes to the scorer the moment it ends."""
    futures: dict[int, Future[Reward]] = {}

    def submit(index: int, rollout: Rollout) -> None:
        futures[index] = _begin_to_score(run, rollout)

    rollouts = sample(run, prompts, params, seed=seed, on_finish=submit)
    rewards = [futures[i] for i in range(len(rollouts))]
    return Submitted(rollouts=rollouts, rewards=rewards, order=prompts)


def sample(
    run: Run,
    prompts: Sequence[Prompt],
    params: SamplingParams,
    *,
    seed: int,
    on_finish: OnFinish = lambda index, rollout: None,
) -> list[Rollout]:
    """Rollouts of this rank's share of the prompts, the same as a single rank would sample.

    Ranks that share one copy of the model (tensor parallelism) sample the prompts of all of them,
    and each keeps its own.
    """
    rollout, rank = run.config.rollout, run.ranks.rank
    costs = [len(prompt.token_ids) for prompt in prompts]
    shares = partition(costs, run.ranks.size, per_round=run.config.train.mini_batch_prompts)
    width = rollout.tensor_parallel if rollout.engine == "vllm" else 1
    first = rank - rank % width
    asked = sorted(number for share in shares[first : first + width] for number in share)
    place = {number: i for i, number in enumerate(shares[rank])}

    def finish(index: int, one: Rollout) -> None:
        number = asked[index // params.n]
        if number in place:
            on_finish(place[number] * params.n + index % params.n, one)

    with run.ranks.doing("generate"):
        found = run.sampler.generate(
            [prompts[i] for i in asked], params, seed=seed, prompt_indices=asked, on_finish=finish
        )
    return [one for i, one in enumerate(found) if asked[i // params.n] in place]


def _begin_to_score(run: Run, rollout: Rollout, before: Reward | None = None) -> Future[Reward]:
    """The pending reward, or the error with which the scorer refused the rollout."""
    try:
        return run.scorer.submit(rollout, before=before)
    except RlcliError as error:
        return _failed(error)


def _failed(error: RlcliError) -> Future[Reward]:
    future: Future[Reward] = Future()
    future.set_exception(error)
    return future


def _scored(run: Run, sampled: Submitted, greedy: Submitted, record: StepRecord) -> ScoredRollouts:
    """Wait for the rewards, and bring them to their final scale."""
    started = time.perf_counter()
    rewards = _held(run, sampled, record)
    greedy_rewards = _held(run, greedy, record) if "greedy" in run.algorithm.needs else []
    settled = run.scorer.normalize([*rewards, *greedy_rewards], update_stats=True)
    rewards, greedy_rewards = settled[: len(rewards)], settled[len(rewards) :]
    by_prompt = {
        rollout.prompt.id: reward
        for rollout, reward in zip(greedy.rollouts, greedy_rewards, strict=True)
    }
    # the slowest rank sampled longer, and this one waited for it
    slower_s = max(run.ranks.gather(sampled.seconds)) - sampled.seconds
    _add(record, "time/sample_s", slower_s)
    _add(record, "time/score_s", max(0.0, time.perf_counter() - started - slower_s))
    return ScoredRollouts(
        rollouts=sampled.rollouts, rewards=rewards, greedy=by_prompt, order=sampled.order
    )


def score(run: Run, rollouts: Sequence[Rollout]) -> list[Reward]:
    """Rewards in the order of `rollouts`, once all ranks have theirs.

    Raises: StepCancelled when a stop was asked for and scoring still goes on.
    """
    return _await(run, [_begin_to_score(run, rollout) for rollout in rollouts])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Progress:
    """Progress of a rank's rewards.

    error: ends the run on all ranks, with its message. failure: an unexpected error, as text.
    """

    is_done: bool
    is_stopping: bool
    error: RlcliError | None = None
    failure: str = ""


def _await(run: Run, futures: Sequence[Future[Reward]]) -> list[Reward]:
    """This rank's rewards, once all ranks have theirs.

    Raises: StepCancelled, on all ranks, when a stop was asked for and scoring still goes on; on
    all ranks, the error of any rank's reward.
    """
    while True:
        done, pending = wait(futures, timeout=STOP_PATIENCE_S, return_when=FIRST_EXCEPTION)
        errors = [error for future in done if (error := _error_of(future)) is not None]
        known = next((error for error in errors if isinstance(error, RlcliError)), None)
        own = _Progress(
            is_done=not pending,
            is_stopping=run.monitor.stop_requested,
            error=known,
            failure="" if known or not errors else repr(errors[0]),
        )
        everyones = run.ranks.gather(own)
        if errors and known is None:
            raise errors[0]
        for rank, progress in enumerate(everyones):
            if progress.error is not None:
                raise known if known and rank == run.ranks.rank else progress.error
            if progress.failure:
                raise RankError(f"rank {rank} failed: {progress.failure}")
        if all(progress.is_done for progress in everyones):
            return [future.result() for future in futures]
        if everyones[0].is_stopping:
            raise StepCancelled
        if trouble := run.scorer.trouble():
            run.monitor.note(trouble)


def _error_of(future: Future[Reward]) -> BaseException | None:
    """The error of a future that is done; None if it has a reward."""
    return CancelledError() if future.cancelled() else future.exception()


def count_usage(
    run: Run, record: StepRecord, rewards: Sequence[Reward], *, prefix: str = ""
) -> None:
    """Add a judge's calls, tokens and cost for `rewards` to the record; nothing without a judge."""
    _count(run, record, _usage_of(rewards), prefix=prefix)


def _usage_of(rewards: Sequence[Reward]) -> dict[str, float]:
    return {name: sum(reward.usage.get(name, 0.0) for reward in rewards) for name in USAGE}


def _count(run: Run, record: StepRecord, usage: Mapping[str, float], *, prefix: str = "") -> None:
    if not run.config.reward.judge.enabled:
        return
    for name, amount in usage.items():
        # without a known price there are no dollars, which is not 0 dollars
        if amount or name != "cost_usd":
            _add(record, f"{prefix}judge/{name}", amount)


def note_judge(
    run: Run,
    record: StepRecord,
    seen: StepView,
    metrics: StepRecord,
    *,
    canaries: Sequence[Reward] = (),
    prefix: str = "",
) -> None:
    """Record metrics of a judge's scores for these rollouts; nothing without a judge.

    metrics: the scorer's own.
    """
    if run.config.reward.judge.enabled:
        part = judge_part(run.config.reward)
        found = measure_judge(seen.rollouts, seen.rewards, canaries, part=part) | metrics
        record.update({f"{prefix}{name}": value for name, value in found.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """Summary of a rank's rewards. unscored: each one's error, and whether waiting can help.

    env_errors: of episodes whose environment failed, which nothing can score.
    """

    num_rewards: int
    num_tokens: int
    unscored: list[tuple[str | None, bool]]
    env_errors: list[str | None]
    usage: dict[str, float]


def _held(run: Run, submitted: Submitted, record: StepRecord) -> list[Reward]:
    """Wait for the rewards; while too many of all ranks are unscored, score those again."""
    rollouts = submitted.rollouts
    rewards = _await(run, submitted.rewards)
    tried = range(len(rewards))
    for attempt in range(HOLD_TRIES):
        lost = [i for i, reward in enumerate(rewards) if reward.value is None]
        failed = [i for i in lost if not rollouts[i].env_failed]
        outcome = _Outcome(
            num_rewards=len(rewards),
            num_tokens=sum(rollout.num_tokens for rollout in rollouts),
            unscored=[(rewards[i].error, run.scorer.can_recover(rewards[i])) for i in failed],
            env_errors=[rewards[i].error for i in lost if rollouts[i].env_failed],
            usage=_usage_of([rewards[i] for i in tried]),
        )
        everyones = run.ranks.gather(outcome)
        for each in everyones:
            _count(run, record, each.usage)
        total = sum(each.num_rewards for each in everyones)
        unscored = [one for each in everyones for one in each.unscored]
        env_errors = [error for each in everyones for error in each.env_errors]
        if len(unscored) + len(env_errors) <= MAX_UNSCORED_SHARE * total:
            _add(record, "unscored", len(unscored) + len(env_errors))
            _add(record, "sampled_tokens", sum(each.num_tokens for each in everyones))
            return rewards
        if len(env_errors) > MAX_UNSCORED_SHARE * total:
            raise _failed_environment(run, env_errors, total)
        if attempt == HOLD_TRIES - 1:
            raise _too_many(unscored, total)
        run.monitor.note(
            f"{len(unscored)} of {total} rollouts are unscored "
            f"({unscored[0][0]}); scoring them again"
        )
        again = [_begin_to_score(run, rollouts[i], before=rewards[i]) for i in failed]
        for i, reward in zip(failed, _await(run, again), strict=True):
            rewards[i] = reward
        tried = failed
    raise AssertionError


def _failed_environment(run: Run, errors: Sequence[str | None], total: int) -> RewardError:
    if (errors[-1] or "").startswith(CANNOT_SHOW):
        return RewardError(
            f"{errors[-1]}\n"
            f"{len(errors)} of {total} episodes could not go on. Use a model whose template takes "
            "the roles of these replies, or change the roles in the environment."
        )
    if is_agent(run.config.env.path):
        return RewardError(
            f"agents failed in {len(errors)} of {total} episodes.\n"
            f"Last error: {errors[-1]}\n"
            "Fix the agent (env.log in the run directory has its output), then resume with "
            "--resume auto."
        )
    return RewardError(
        f"the environment failed in {len(errors)} of {total} episodes.\n"
        f"Last error: {errors[-1]}\n"
        "Fix the environment (rlcli env check), then resume with --resume auto."
    )


def _too_many(unscored: Sequence[tuple[str | None, bool]], total: int) -> Paused | RewardError:
    """Paused if few enough would stay unscored once the services are back; else RewardError."""
    can_recover = any(recovers for _, recovers in unscored)
    stay = sum(not recovers for _, recovers in unscored)
    is_outage = can_recover and stay <= MAX_UNSCORED_SHARE * total
    cause = next(error for error, recovers in unscored if recovers == is_outage)
    message = (
        f"the reward left {len(unscored)} of {total} rollouts unscored, {HOLD_TRIES} times.\n"
        f"Last error: {cause}"
    )
    if is_outage:
        return Paused(f"{message}\nResume with --resume auto once the service answers.")
    return RewardError(f"{message}\nFix the reward function, then resume with --resume auto.")


def _without_ties(run: Run, collected: ScoredRollouts) -> tuple[ScoredRollouts, list[float]]:
    """(only groups with at least two different scores, the scores of all ranks).

    Groups of equal scores have advantages of 0.
    """
    ids: set[str] = set()
    for prompt_id, members in groups_of(collected).items():
        if len({collected.rewards[i].value for i in members} - {None}) > 1:
            ids.add(prompt_id)
    scores = [reward.value for reward in collected.rewards if reward.value is not None]
    everyones = run.ranks.gather((ids, scores))
    kept = set[str]().union(*(each for each, _ in everyones))
    order = [prompt for prompt in collected.order if prompt.id in kept]
    return _picked(collected, order), [value for _, each in everyones for value in each]


def _picked(collected: ScoredRollouts, order: Sequence[Prompt]) -> ScoredRollouts:
    """The rollouts of these prompts."""
    ids = {prompt.id for prompt in order}
    rows = [row for row, one in enumerate(collected.rollouts) if one.prompt.id in ids]
    return replace(
        collected,
        rollouts=[collected.rollouts[i] for i in rows],
        rewards=[collected.rewards[i] for i in rows],
        order=order,
    )


def _joined(first: ScoredRollouts, second: ScoredRollouts, max_groups: int) -> ScoredRollouts:
    """Both together, no prompt twice, at most `max_groups` prompts."""
    seen = {prompt.id for prompt in first.order}
    new = _picked(second, [prompt for prompt in second.order if prompt.id not in seen])
    both = ScoredRollouts(
        rollouts=[*first.rollouts, *new.rollouts],
        rewards=[*first.rewards, *new.rewards],
        greedy={**first.greedy, **new.greedy},
    )
    return _picked(both, [*first.order, *new.order][:max_groups])


def _add(record: StepRecord, name: str, value: float) -> None:
    record[name] = record.get(name, 0.0) + value


def _record_rollouts(seen: StepView, record: StepRecord) -> None:
    """Reward, length and truncation metrics of the step."""
    values = [r.value for r in seen.rewards if r.value is not None]
    record.update(measure_episodes(seen.rollouts, seen.rewards))
    lengths = [rollout.num_tokens for rollout in seen.rollouts]
    total = max(1, len(lengths))
    if values:
        scores = torch.tensor(values, dtype=torch.float64)
        record["reward_mean"] = float(scores.mean())
        record["reward_std"] = float(scores.std(unbiased=False))
    record["response_length_mean"] = sum(lengths) / total
    record["response_length_max"] = max(lengths, default=0)
    cut = sum(rollout.finish_reason == "length" for rollout in seen.rollouts)
    record["truncated_share"] = cut / total
    groups: dict[str, list[float | None]] = {}
    for rollout, reward in zip(seen.rollouts, seen.rewards, strict=True):
        groups.setdefault(rollout.prompt.id, []).append(reward.value)
    if any(len(members) > 1 for members in groups.values()):
        tied = sum(len(set(members)) == 1 for members in groups.values())
        record["zero_variance_share"] = tied / len(groups)
    parts: dict[str, list[float]] = {}
    for reward in seen.rewards:
        for name, value in reward.parts.items():
            parts.setdefault(name, []).append(value)
    record.update({f"reward/{k}": sum(v) / len(v) for k, v in parts.items()})
