"""The rollouts and rewards of one step: sampling, scoring while it goes on, refills and holds."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlcli.errors import Paused, RewardError
from rlcli.rewards.measures import judge_part, measure_judge
from rlcli.rollout.base import SamplingParams
from rlcli.types import Batch, Prompt, Reward, Rollout, StepRecord

if TYPE_CHECKING:
    from rlcli.trainer import Run

MAX_UNSCORED_SHARE = 0.2
HOLD_TRIES = 3
STOP_PATIENCE_S = 5.0


class StepAbandoned(Exception):  # no error: the step is done again on resume
    """A stop was asked for while the rewards of a step or an evaluation were still missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """Rollouts, prompts in order and groups adjacent, with their rewards. Greedy ones apart."""

    rollouts: Sequence[Rollout]
    rewards: Sequence[Reward]
    greedy: Mapping[str, Reward]


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """Rollouts in order and their rewards to come."""

    rollouts: Sequence[Rollout]
    rewards: Sequence[Future[Reward]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A step that is sampled and being scored. greedy: empty unless the estimator asks for it."""

    sampled: Submitted
    greedy: Submitted
    canaries: Sequence[Future[Reward]]


def collect(run: Run, prompts: Sequence[Prompt], record: StepRecord, *, step: int) -> Collected:
    """Scored rollouts of `prompts`; under dynamic sampling of enough prompts that tell apart.

    Raises: RewardError or Paused when the reward leaves too many rollouts unscored three times.
    """
    return end(run, begin(run, prompts, record, step=step), record, step=step)


def begin(run: Run, prompts: Sequence[Prompt], record: StepRecord, *, step: int) -> Begun:
    """Rollouts of `prompts` by the weights the sampler has now, each on its way to the scorer."""
    canaries = run.scorer.canaries(step, prompts)
    sampled, greedy = _sample(run, prompts, record, seed=run.seed(step, "sample"))
    return Begun(sampled=sampled, greedy=greedy, canaries=canaries)


def end(run: Run, begun: Begun, record: StepRecord, *, step: int) -> Collected:
    """What was begun with its rewards, and what dynamic sampling adds by the weights of now.

    Raises: RewardError or Paused when the reward leaves too many rollouts unscored three times.
    """
    settings = run.config.algorithm
    kept = drawn = _scored(run, begun.sampled, begun.greedy, record)
    if settings.dynamic_sampling:
        wanted = run.config.train.prompts_per_step
        scores = [r.value for r in drawn.rewards if r.value is not None]
        kept = _without_ties(drawn)
        rounds = 1
        while len(_groups(kept)) < wanted and rounds <= settings.max_refills:
            fresh = run.prompts.next(wanted)
            drawn = _scored(
                run, *_sample(run, fresh, record, seed=run.seed(step, "sample", rounds)), record
            )
            scores += [r.value for r in drawn.rewards if r.value is not None]
            kept = _joined(kept, _without_ties(drawn), wanted)
            rounds += 1
        record["dynamic_sampling/rounds"] = rounds
        record["dynamic_sampling/kept_prompts"] = len(_groups(kept))
        record["dynamic_sampling/drawn_reward_mean"] = sum(scores) / max(1, len(scores))
        # a step of nothing but ties still counts: its advantages are 0
        kept = kept if kept.rollouts else drawn
    _record_rollouts(kept, record, max_tokens=run.config.data.max_response_tokens)
    if run.config.rollout.async_steps:
        ages = [step - rollout.policy_version for rollout in kept.rollouts]
        record["sampler/staleness"] = sum(ages) / len(ages)
    judged = [_wait(run, canary) for canary in begun.canaries]
    count_usage(run, record, judged)
    note_judge(run, record, kept.rollouts, kept.rewards, canaries=judged)
    return kept


def _sample(
    run: Run, prompts: Sequence[Prompt], record: StepRecord, *, seed: int
) -> tuple[Submitted, Submitted]:
    """(sampled, greedy) rollouts; greedy ones only where the estimator compares with them."""
    config = run.config
    params = SamplingParams(
        n=config.rollout.n,
        max_tokens=config.data.max_response_tokens,
        temperature=config.rollout.temperature,
        top_p=config.rollout.top_p,
        top_k=config.rollout.top_k,
    )
    started = time.perf_counter()
    sampled = _submit(run, prompts, params, seed=seed)
    greedy = Submitted(rollouts=(), rewards=())
    if "greedy" in run.algorithm.needs:
        greedy_params = replace(params, n=1, temperature=0.0, top_p=1.0, top_k=-1)
        greedy = _submit(run, prompts, greedy_params, seed=seed)
    _add(record, "time/sample_s", time.perf_counter() - started)
    return sampled, greedy


def _submit(run: Run, prompts: Sequence[Prompt], params: SamplingParams, *, seed: int) -> Submitted:
    """Each rollout goes to the scorer the moment it ends."""
    futures: dict[int, Future[Reward]] = {}

    def submit(index: int, rollout: Rollout) -> None:
        futures[index] = run.scorer.submit(rollout)

    rollouts = run.sampler.generate(prompts, params, seed=seed, on_finish=submit)
    return Submitted(rollouts=rollouts, rewards=[futures[i] for i in range(len(rollouts))])


def _scored(run: Run, sampled: Submitted, greedy: Submitted, record: StepRecord) -> Collected:
    """The rewards when all are there, on their final scale."""
    started = time.perf_counter()
    rewards = _held(run, sampled, record)
    greedy_rewards = _held(run, greedy, record)
    settled = run.scorer.settle([*rewards, *greedy_rewards], learns=True)
    rewards, greedy_rewards = settled[: len(rewards)], settled[len(rewards) :]
    _add(record, "unscored", sum(reward.value is None for reward in settled))
    by_prompt = {
        rollout.prompt.id: reward
        for rollout, reward in zip(greedy.rollouts, greedy_rewards, strict=True)
    }
    _add(record, "time/score_s", time.perf_counter() - started)
    everything = [*sampled.rollouts, *greedy.rollouts]
    _add(record, "sampled_tokens", sum(len(rollout.token_ids) for rollout in everything))
    return Collected(rollouts=sampled.rollouts, rewards=rewards, greedy=by_prompt)


def score(run: Run, rollouts: Sequence[Rollout]) -> list[Reward]:
    """Rewards in the order of `rollouts`.

    Raises: StepAbandoned when a stop was asked for and scoring still goes on.
    """
    futures = [run.scorer.submit(rollout) for rollout in rollouts]
    return [_wait(run, future) for future in futures]


def _wait(run: Run, future: Future[Reward]) -> Reward:
    """The reward, or StepAbandoned when a stop was asked for and scoring still goes on."""
    # not future.result(timeout): a TimeoutError may also be what the future carries
    while not future.done():
        wait([future], timeout=STOP_PATIENCE_S)
        if future.done():
            break
        if run.monitor.stop_requested:
            raise StepAbandoned
        if trouble := run.scorer.trouble():
            run.monitor.note(trouble)
    return future.result()


def count_usage(
    run: Run, record: StepRecord, rewards: Sequence[Reward], *, prefix: str = ""
) -> None:
    """Add what a judge took for `rewards` to the record; nothing without a judge."""
    if not run.config.reward.judge.enabled:
        return
    for name in ("calls", "input_tokens", "output_tokens", "cost_usd"):
        amount = sum(reward.usage.get(name, 0.0) for reward in rewards)
        # without a known price there are no dollars, which is not 0 dollars
        if amount or name != "cost_usd":
            _add(record, f"{prefix}judge/{name}", amount)


def note_judge(
    run: Run,
    record: StepRecord,
    rollouts: Sequence[Rollout],
    rewards: Sequence[Reward],
    *,
    canaries: Sequence[Reward] = (),
    prefix: str = "",
) -> None:
    """Record what a judge said of these rollouts, and how it went; nothing without a judge."""
    if run.config.reward.judge.enabled:
        part = judge_part(run.config.reward)
        found = measure_judge(rollouts, rewards, canaries, part=part) | run.scorer.metrics()
        record.update({f"{prefix}{name}": value for name, value in found.items()})


def _held(run: Run, submitted: Submitted, record: StepRecord) -> list[Reward]:
    """The rewards, after scoring the unscored again while they are too many."""
    rollouts = submitted.rollouts
    rewards = [_wait(run, future) for future in submitted.rewards]
    count_usage(run, record, rewards)
    for attempt in range(HOLD_TRIES):
        failed = [i for i, reward in enumerate(rewards) if reward.value is None]
        if len(failed) <= MAX_UNSCORED_SHARE * len(rewards):
            return rewards
        if attempt == HOLD_TRIES - 1:
            break
        run.monitor.note(
            f"{len(failed)} of {len(rewards)} rollouts are unscored "
            f"({rewards[failed[0]].error}); scoring them again"
        )
        again = {i: run.scorer.submit(rollouts[i], before=rewards[i]) for i in failed}
        for index, future in again.items():
            rewards[index] = _wait(run, future)
        count_usage(run, record, [rewards[i] for i in failed])
    raise _too_many(run, rewards)


def _too_many(run: Run, rewards: Sequence[Reward]) -> Paused | RewardError:
    """Paused where few enough stay unscored once the services are back."""
    failed = [reward for reward in rewards if reward.value is None]
    broken = [reward for reward in failed if not run.scorer.can_recover(reward)]
    is_outage = len(broken) <= MAX_UNSCORED_SHARE * len(rewards)
    cause = next(r.error for r in failed if run.scorer.can_recover(r) == is_outage)
    message = (
        f"the reward left {len(failed)} of {len(rewards)} rollouts unscored, {HOLD_TRIES} times.\n"
        f"Last error: {cause}"
    )
    if is_outage:
        return Paused(f"{message}\nResume with --resume auto once the service answers.")
    return RewardError(f"{message}\nMend the reward; --resume auto goes on.")


def _groups(collected: Collected) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for row, rollout in enumerate(collected.rollouts):
        groups.setdefault(rollout.prompt.id, []).append(row)
    return groups


def _picked(collected: Collected, rows: Sequence[int]) -> Collected:
    return replace(
        collected,
        rollouts=[collected.rollouts[i] for i in rows],
        rewards=[collected.rewards[i] for i in rows],
    )


def _without_ties(collected: Collected) -> Collected:
    """Only groups with at least two different scores: the others teach nothing."""
    rows: list[int] = []
    for members in _groups(collected).values():
        values = {collected.rewards[i].value for i in members} - {None}
        if len(values) > 1:
            rows.extend(members)
    return _picked(collected, rows)


def _joined(first: Collected, second: Collected, max_groups: int) -> Collected:
    """Both together, no prompt twice, at most `max_groups` prompts."""
    seen = set(_groups(first))
    rows = [i for i, rollout in enumerate(second.rollouts) if rollout.prompt.id not in seen]
    new = _picked(second, rows)
    both = Collected(
        rollouts=[*first.rollouts, *new.rollouts],
        rewards=[*first.rewards, *new.rewards],
        greedy={**first.greedy, **new.greedy},
    )
    chosen = list(_groups(both).values())[:max_groups]
    return _picked(both, [row for members in chosen for row in members])


def _add(record: StepRecord, name: str, value: float) -> None:
    record[name] = record.get(name, 0.0) + value


def _record_rollouts(collected: Collected, record: StepRecord, *, max_tokens: int) -> None:
    """Reward, length and truncation metrics of the step."""
    values = [r.value for r in collected.rewards if r.value is not None]
    lengths = [len(r.token_ids) for r in collected.rollouts]
    total = max(1, len(lengths))
    if values:
        scores = torch.tensor(values, dtype=torch.float64)
        record["reward_mean"] = float(scores.mean())
        record["reward_std"] = float(scores.std(unbiased=False))
    record["response_length_mean"] = sum(lengths) / total
    record["response_length_max"] = max(lengths, default=0)
    cut = sum(r.finish_reason == "length" for r in collected.rollouts)
    record["truncated_share"] = cut / total
    tied = 0
    groups = _groups(collected).values()
    for members in groups:
        tied += len({collected.rewards[i].value for i in members}) == 1
    if any(len(members) > 1 for members in groups):
        record["zero_variance_share"] = tied / max(1, len(groups))
    parts: dict[str, list[float]] = {}
    for reward in collected.rewards:
        for name, value in reward.parts.items():
            parts.setdefault(name, []).append(value)
    record.update({f"reward/{k}": sum(v) / len(v) for k, v in parts.items()})


def collate(collected: Collected, *, needs: frozenset[str]) -> Batch:
    """The rollouts as tensors. Unscored rows stay, with valid_B 0.

    A group with fewer than two scores is invalid where the estimator compares within groups;
    so is, for ReMax, a prompt whose greedy rollout is unscored.
    """
    rollouts, rewards = collected.rollouts, collected.rewards
    groups = _groups(collected)
    place = {prompt_id: index for index, prompt_id in enumerate(groups)}
    lengths = torch.tensor([len(r.token_ids) for r in rollouts])
    width = int(lengths.max())
    mask_BT = torch.arange(width)[None] < lengths[:, None]
    valid_B = torch.tensor([float(r.value is not None) for r in rewards])
    baseline_B = None
    if "greedy" in needs:
        baselines = [collected.greedy[r.prompt.id].value for r in rollouts]
        baseline_B = torch.tensor([b or 0.0 for b in baselines])
        valid_B = valid_B * torch.tensor([float(b is not None) for b in baselines])
    if "group" in needs:
        for members in groups.values():
            if valid_B[members].sum() < 2:
                valid_B[members] = 0.0
    token_ids_BT = torch.zeros(mask_BT.shape, dtype=torch.long)
    token_ids_BT[mask_BT] = torch.tensor([t for r in rollouts for t in r.token_ids])
    logprobs_BT = torch.zeros(mask_BT.shape)
    logprobs_BT[mask_BT] = torch.tensor([x for r in rollouts for x in r.logprobs])
    return Batch(
        prompt_ids=tuple(rollouts[rows[0]].prompt.token_ids for rows in groups.values()),
        group_B=torch.tensor([place[r.prompt.id] for r in rollouts]),
        token_ids_BT=token_ids_BT,
        lengths_B=lengths,
        response_mask_BT=mask_BT.float(),
        rollout_logprobs_BT=logprobs_BT,
        rewards_B=torch.tensor([r.value or 0.0 for r in rewards]) * valid_B,
        valid_B=valid_B,
        truncated_B=torch.tensor([r.finish_reason == "length" for r in rollouts]),
        baseline_B=baseline_B,
        parts=_collate_parts(rewards) if "parts" in needs else {},
    )


def _collate_parts(rewards: Sequence[Reward]) -> dict[str, Tensor]:
    """Every part as [B]; an unscored row has 0 and is masked by valid_B.

    Raises: RewardError when a scored rollout lacks a part that another has.
    """
    names = sorted({name for reward in rewards for name in reward.parts})
    for reward in rewards:
        missing = [n for n in names if n not in reward.parts]
        if reward.value is not None and (missing or not names):
            raise RewardError(
                f"gdpo needs the same parts for every rollout; one lacks {', '.join(missing)}.\n"
                "Return a dict such as {'score': 1.0, 'accuracy': 1.0, 'format': 0.0}."
            )
    return {n: torch.tensor([reward.parts.get(n, 0.0) for reward in rewards]) for n in names}
