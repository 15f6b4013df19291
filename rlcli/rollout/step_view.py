"""Rank 0's view of a step: texts, lengths and rewards of all ranks, without tokens."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from rlcli.distributed.collectives import Ranks
from rlcli.types import Prompt, Response, Reward, Rollout, Turn

LEVEL = 1
"""Of zlib: the fastest, which compresses English to two fifths."""


@dataclass(slots=True)
class ResponseView:
    """A response without its tokens."""

    prompt: Prompt
    text: str
    num_tokens: int
    finish_reason: str
    policy_version: int
    turns: tuple[Turn, ...] = ()
    env_failed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StepView:
    """The rollouts of all ranks, prompts in order and groups adjacent, and their rewards.

    Empty on every rank but 0.
    """

    rollouts: Sequence[Response] = ()
    rewards: Sequence[Reward] = ()


def show(
    ranks: Ranks, order: Sequence[Prompt], rollouts: Sequence[Rollout], rewards: Sequence[Reward]
) -> StepView:
    """Gather every rank's rollouts on rank 0. order: the prompts of all ranks."""
    if ranks.size == 1:
        return StepView(rollouts=rollouts, rewards=rewards)
    number = {prompt.id: place for place, prompt in enumerate(order)}
    numbers = [number[rollout.prompt.id] for rollout in rollouts]
    if ranks.rank:
        ranks.gather_bytes(_pack(numbers, rollouts, rewards))
        return StepView()
    rows: list[tuple[int, Response, Reward]] = list(zip(numbers, rollouts, rewards, strict=True))
    for data in ranks.gather_bytes(b"")[1:]:
        rows += _unpack(data, order)
    rows.sort(key=itemgetter(0))
    return StepView(rollouts=[row[1] for row in rows], rewards=[row[2] for row in rows])


def _pack(numbers: Sequence[int], rollouts: Sequence[Rollout], rewards: Sequence[Reward]) -> bytes:
    """Columns of the rollouts; equal rewards, of which there are many, are sent once."""
    table: dict[tuple[Any, ...], int] = {}
    prompt_indices = [table.setdefault(_fields(reward), len(table)) for reward in rewards]
    columns = (
        numbers,
        [rollout.text for rollout in rollouts],
        [rollout.num_tokens for rollout in rollouts],
        [rollout.finish_reason for rollout in rollouts],
        [rollout.policy_version for rollout in rollouts],
        [rollout.turns for rollout in rollouts],
        [rollout.env_failed for rollout in rollouts],
        prompt_indices,
    )
    return zlib.compress(pickle.dumps((columns, list(table)), pickle.HIGHEST_PROTOCOL), LEVEL)


def _unpack(data: bytes, order: Sequence[Prompt]) -> Iterator[tuple[int, Response, Reward]]:
    (numbers, *columns, prompt_indices), table = pickle.loads(zlib.decompress(data))
    rewards = [_reward(*fields) for fields in table]
    prompts = [order[number] for number in numbers]
    seen = map(ResponseView, prompts, *columns)
    return zip(numbers, seen, [rewards[place] for place in prompt_indices], strict=True)


def _fields(reward: Reward) -> tuple[Any, ...]:
    return (
        reward.value,
        tuple(reward.parts.items()),
        reward.error,
        tuple(reward.usage.items()),
        reward.reason,
        reward.is_undecided,
        reward.is_outage,
    )


def _reward(value: Any, parts: Any, error: Any, usage: Any, reason: Any, *flags: bool) -> Reward:
    is_undecided, is_outage = flags
    return Reward(
        value=value,
        parts=dict(parts),
        error=error,
        usage=dict(usage),
        reason=reason,
        is_undecided=is_undecided,
        is_outage=is_outage,
    )
