"""A rank's rollouts and rewards of one step, and the tensors they become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from rlcli.errors import RewardError
from rlcli.rollout.step_view import StepView
from rlcli.types import Batch, Prompt, Reward, Rollout, Share

CUT = ("length", "turns")
"""Finish reasons of rollouts that a limit has cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRollouts:
    """This rank's rollouts, prompts in order and groups adjacent, with their rewards.

    greedy: rewards of greedy rollouts by prompt. order: the prompts of all ranks; empty if this
    rank has all. seen: rank 0's view of all ranks' rollouts, once the step is collected.
    """

    rollouts: Sequence[Rollout]
    rewards: Sequence[Reward]
    greedy: Mapping[str, Reward]
    order: Sequence[Prompt] = ()
    seen: StepView = field(default_factory=StepView)


def collate(
    collected: ScoredRollouts, *, needs: frozenset[str], turn_weight: float | None = None
) -> Batch:
    """This rank's rollouts as tensors. Unscored rows stay, with valid_B 0.

    turn_weight: weight of the turns' rewards in the score; None: turns are not credited.

    valid_B is also 0 for groups with fewer than two scores, if the estimator compares within
    groups, and for prompts whose greedy rollout is unscored, if it uses one (ReMax). Each
    conversation of an episode is a row, with the episode's reward.
    """
    collected = _by_conversation(collected)
    rollouts, rewards = collected.rollouts, collected.rewards
    groups = groups_of(collected)
    place = {prompt_id: index for index, prompt_id in enumerate(groups)}
    row_lengths = [len(r.token_ids) for r in rollouts]
    lengths = torch.tensor(row_lengths, dtype=torch.long)
    width = max(row_lengths, default=0)
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
    token_ids_BT[mask_BT] = torch.from_numpy(_flat([r.token_ids for r in rollouts], np.int64))
    logprobs_BT = torch.zeros(mask_BT.shape)
    logprobs_BT[mask_BT] = torch.from_numpy(_flat([r.logprobs for r in rollouts], np.float32))
    return Batch(
        prompt_ids=tuple(rollouts[rows[0]].prompt.token_ids for rows in groups.values()),
        group_B=torch.tensor([place[r.prompt.id] for r in rollouts], dtype=torch.long),
        token_ids_BT=token_ids_BT,
        lengths_B=lengths,
        response_mask_BT=_written(rollouts, mask_BT),
        rollout_logprobs_BT=logprobs_BT,
        rewards_B=torch.tensor([r.value or 0.0 for r in rewards]) * valid_B,
        valid_B=valid_B,
        truncated_B=torch.tensor([r.finish_reason in CUT for r in rollouts], dtype=torch.bool),
        turn_rewards_BT=_turn_rewards(rollouts, valid_B, width, turn_weight),
        baseline_B=baseline_B,
        parts=_collate_parts(rewards) if "parts" in needs else {},
        share=_share_of(collected, groups),
    )


def _by_conversation(collected: ScoredRollouts) -> ScoredRollouts:
    """Episodes of several conversations as one rollout for each of them."""
    if not any(rollout.more for rollout in collected.rollouts):
        return collected
    pairs = [
        (row, reward)
        for rollout, reward in zip(collected.rollouts, collected.rewards, strict=True)
        for row in (rollout, *rollout.more)
    ]
    rollouts, rewards = zip(*pairs, strict=True)
    return replace(collected, rollouts=rollouts, rewards=rewards)


def _written(rollouts: Sequence[Rollout], mask_BT: Tensor) -> Tensor:
    """[B, T]: 1.0 on the tokens that the policy wrote. mask_BT: where there are tokens."""
    written_BT = mask_BT.float()
    if any(rollout.mask is not None for rollout in rollouts):
        masks = [r.mask or (1,) * len(r.token_ids) for r in rollouts]
        written_BT[mask_BT] = torch.from_numpy(_flat(masks, np.float32))
    return written_BT


def _turn_rewards(
    rollouts: Sequence[Rollout], valid_B: Tensor, width: int, weight: float | None
) -> Tensor | None:
    """[B, T]: each turn's reward on its last token; None without a weight."""
    if weight is None:
        return None
    rewards_BT = torch.zeros(len(rollouts), width)
    for row, rollout in enumerate(rollouts):
        start = 0
        for turn in rollout.turns:
            if turn.reward is not None and turn.num_tokens:
                rewards_BT[row, start + turn.num_tokens - 1] = weight * turn.reward
            start += turn.num_tokens + turn.num_reply_tokens
    return rewards_BT * valid_B[:, None]


def _flat(rows: Sequence[Sequence[float]], dtype: type[np.generic]) -> np.ndarray:
    """All rows as one array: ten times faster than a tensor from a list."""
    return np.fromiter(chain.from_iterable(rows), dtype, count=sum(map(len, rows)))


def _share_of(collected: ScoredRollouts, groups: Mapping[str, object]) -> Share | None:
    """The numbers of this rank's prompts among the prompts of the step."""
    if not collected.order:
        return None
    number = {prompt.id: place for place, prompt in enumerate(collected.order)}
    return Share(numbers=tuple(number[each] for each in groups), total=len(collected.order))


def kinds_of_parts(rewards: Sequence[Reward]) -> set[tuple[str, ...]]:
    """The different sets of parts among scored rollouts."""
    return {tuple(sorted(reward.parts)) for reward in rewards if reward.value is not None}


def check_parts(kinds: Set[tuple[str, ...]]) -> None:
    """Raises: RewardError when a scored rollout lacks a part that another has."""
    names = {name for kind in kinds for name in kind}
    for kind in kinds:
        missing = sorted(names - set(kind))
        if missing or not names:
            raise RewardError(
                f"gdpo needs the same parts for every rollout; one lacks {', '.join(missing)}.\n"
                "Return a dict such as {'score': 1.0, 'accuracy': 1.0, 'format': 0.0}."
            )


def with_all_parts(collected: ScoredRollouts, kinds: Set[tuple[str, ...]]) -> ScoredRollouts:
    """Scored episodes with 0 for the parts that none of their steps gave.

    kinds: the sets of parts of all ranks.
    """
    zeros = dict.fromkeys(sorted({name for kind in kinds for name in kind}), 0.0)
    rewards = [
        replace(reward, parts={**zeros, **reward.parts})
        if rollout.turns and reward.value is not None
        else reward
        for rollout, reward in zip(collected.rollouts, collected.rewards, strict=True)
    ]
    return replace(collected, rewards=rewards)


def _collate_parts(rewards: Sequence[Reward]) -> dict[str, Tensor]:
    """Every part as [B]; an unscored row has 0 and is masked by valid_B. Raises: RewardError."""
    kinds = kinds_of_parts(rewards)
    check_parts(kinds)
    names = sorted({name for kind in kinds for name in kind})
    return {n: torch.tensor([reward.parts.get(n, 0.0) for reward in rewards]) for n in names}


def groups_of(collected: ScoredRollouts) -> dict[str, list[int]]:
    """The rows of each prompt, by its id."""
    groups: dict[str, list[int]] = {}
    for row, rollout in enumerate(collected.rollouts):
        groups.setdefault(rollout.prompt.id, []).append(row)
    return groups
