"""Rewards of single turns: numbers worked out by hand, an exact gradient, and a plain reference."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from rlcli.algos import advantages as estimators
from rlcli.algos.aggregation import aggregate, count
from rlcli.algos.algorithm import Algorithm
from rlcli.algos.masked_stats import alone
from rlcli.algos.reward_shaping import rewards_before, token_rewards
from rlcli.config.resolved import with_values
from rlcli.config.schema import Config
from rlcli.rollout.collate import ScoredRollouts, collate
from rlcli.types import AnnotatedBatch, Prompt, Reward, Rollout, Turn

ENV = 9
"""A token of the environment."""


def episode(turns: Sequence[tuple[Sequence[int], float | None]], group: str = "a") -> Rollout:
    """Turns of (token ids, reward), one environment token between two of them."""
    ids: list[int] = []
    mask: list[int] = []
    for i, (tokens, _) in enumerate(turns):
        if i:
            ids, mask = [*ids, ENV], [*mask, 0]
        ids, mask = [*ids, *tokens], [*mask, *[1] * len(tokens)]
    last = len(turns) - 1
    return Rollout(
        prompt=Prompt(id=group, messages=(), token_ids=(1,)),
        text="",
        token_ids=tuple(ids),
        logprobs=tuple([-1.0] * len(ids)),
        finish_reason="env",
        policy_version=0,
        mask=tuple(mask),
        turns=tuple(
            Turn(
                text="",
                num_tokens=len(tokens),
                finish_reason="stop",
                num_reply_tokens=int(i < last),
                reward=reward,
            )
            for i, (tokens, reward) in enumerate(turns)
        ),
    )


def annotated(
    rollouts: Sequence[Rollout], rewards: Sequence[float | None], **more: Any
) -> AnnotatedBatch:
    found = [Reward(value=reward) for reward in rewards]
    scored = ScoredRollouts(rollouts=rollouts, rewards=found, greedy={})
    batch = collate(scored, needs=frozenset({"group"}), turn_weight=1.0)
    values = {name: getattr(batch, name) for name in batch.__dataclass_fields__}
    return AnnotatedBatch(**values, old_logprobs_BT=batch.rollout_logprobs_BT, **more)


def algorithm(name: str, **changes: Any) -> Algorithm:
    base = {"algorithm.advantage": name, "env.path": "e.py:E", "env.credit": "turn"}
    return Algorithm(with_values(Config(), {**base, **changes}), corrects_sampler=False)


TWO = [episode([((5, 6), 1.0), ((7,), 2.0)]), episode([((5,), 1.0)])]
"""Returns 3 and 1; the first has 2 left after its first turn."""


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("grpo", [1.0, 1.0, 0.0, 0.0], -1.0),  # 3 - 2, 2 - 2, and 1 - 2
        ("rloo", [2.0, 2.0, 0.0, 1.0], -2.0),  # 3 - 1, 2 - 1, and 1 - 3
    ],
)
def test_a_turn_is_credited_with_what_comes_from_it_on(
    name: str, first: list[float], second: float
) -> None:
    chosen = algorithm(name, **{"algorithm.scale_by_std": False})
    got = chosen.advantages(annotated(TWO, [3.0, 1.0]), all_reduce=alone).advantages_BT
    assert got[0].tolist() == first
    assert got[1].tolist() == [second, 0.0, 0.0, 0.0]


def test_what_no_turn_earned_counts_for_the_whole_episode() -> None:
    """The first score has 4 more than its turns: a judge's part, or the floor."""
    chosen = algorithm("rloo")
    got = chosen.advantages(annotated(TWO, [7.0, 1.0]), all_reduce=alone).advantages_BT
    assert got[0].tolist() == [6.0, 6.0, 0.0, 5.0]


def test_an_unscored_episode_credits_no_turn() -> None:
    three = [*TWO, episode([((5,), 9.0), ((6,), 9.0)])]
    chosen = algorithm("rloo")
    got = chosen.advantages(annotated(three, [3.0, 1.0, None]), all_reduce=alone).advantages_BT
    assert not got[2].any()
    assert got[0].tolist() == [2.0, 2.0, 0.0, 1.0]


def test_the_next_turn_is_discounted_once_more() -> None:
    """Rewards 1 and 8 on the second and the last token; gamma 1/2, gamma_turn 1/4.

    From the last token back: 8; 1 + 1/8 * 8 = 2; 1/2 * 2 = 1. Mean 11/3.
    """
    mask = torch.tensor([[1.0, 1.0, 0.0, 1.0]], dtype=torch.float64)
    rewards = torch.tensor([[0.0, 1.0, 0.0, 8.0]], dtype=torch.float64)
    got = estimators.reinforce_plus_plus(
        rewards,
        mask,
        valid_B=torch.ones(1),
        all_reduce=alone,
        gamma=0.5,
        gamma_turn=0.25,
    ).advantages_BT[0]
    mean = 11 / 3
    std = math.sqrt(sum((x - mean) ** 2 for x in (1, 2, 8)) / 2)
    expected = [(x - mean) / std for x in (1, 2, 8)]
    assert got[[0, 1, 3]].tolist() == pytest.approx(expected)
    assert got[2] == 0


def test_gae_discounts_the_value_behind_a_reply_once_more() -> None:
    """gamma 1, lam 1/2, gamma_turn 1/2; values 2 and 4; rewards 1 and 3 of two turns of a token.

    d1 = 3 - 4 = -1; d0 = 1 + 1/2 * 4 - 2 = 1; A0 = 1 + 1/2 * 1/2 * -1 = 3/4; returns 11/4 and 3.
    """
    got = estimators.gae(
        torch.tensor([[1.0, 0.0, 3.0]]),
        torch.tensor([[1.0, 0.0, 1.0]]),
        values_BT=torch.tensor([[2.0, 7.0, 4.0]]),
        valid_B=torch.ones(1),
        all_reduce=alone,
        gamma=1.0,
        lam=0.5,
        gamma_turn=0.5,
    )
    assert got.returns_BT is not None
    assert got.returns_BT.tolist() == [[2.75, 0.0, 3.0]]


# A policy that stops at once (reward 0.2) or goes on (0.5) and then writes x (2) or y (0).
STOP, GO, X, Y = 1, 2, 3, 4
EPISODES = {
    "stop": ([((STOP,), 0.2)], 0.2),
    "go x": ([((GO,), 0.5), ((X,), 2.0)], 2.5),
    "go y": ([((GO,), 0.5), ((Y,), 0.0)], 0.5),
}
A, B = 0.0, -math.log(3.0)
"""p = sigmoid(A) = 1/2 stops, q = sigmoid(B) = 1/4 writes x."""
CHANCE = {"stop": 1 / 2, "go x": 1 / 8, "go y": 3 / 8}
GRADIENT = (-0.2, 0.1875)
"""J = 0.2 p + (1 - p) (0.5 + 2 q). dJ/dA = p (1 - p) (0.2 - 0.5 - 2 q) = 1/4 * -0.8;
dJ/dB = (1 - p) 2 q (1 - q) = 1/2 * 2 * 3/16."""


def estimated_gradient(chosen: Algorithm, names: Sequence[str]) -> tuple[float, float]:
    """Of the mean over rollouts, by the run's own collating, advantages and loss."""
    a, b = (torch.tensor(x, requires_grad=True) for x in (A, B))
    log = {
        STOP: torch.nn.functional.logsigmoid(a),
        GO: torch.nn.functional.logsigmoid(-a),
        X: torch.nn.functional.logsigmoid(b),
        Y: torch.nn.functional.logsigmoid(-b),
        ENV: torch.tensor(-5.0),
        0: torch.tensor(0.0),
    }
    rollouts = [episode(EPISODES[name][0]) for name in names]
    batch = annotated(rollouts, [EPISODES[name][1] for name in names])
    logprobs = torch.stack([torch.stack([log[int(t)] for t in row]) for row in batch.token_ids_BT])
    values = {name: getattr(batch, name) for name in batch.__dataclass_fields__}
    batch = AnnotatedBatch(**{**values, "old_logprobs_BT": logprobs.detach()})
    found = chosen.advantages(batch, all_reduce=alone)
    loss = chosen.policy_loss(logprobs, torch.zeros_like(logprobs), batch, found, None).loss_BT
    mask = found.loss_mask_BT
    assert mask is not None
    (-(loss * mask).sum() / len(names)).backward()
    return tuple(0.0 if x.grad is None else float(x.grad) for x in (a, b))  # type: ignore[return-value]


@pytest.mark.parametrize("credit", ["turn", "outcome"])
@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("name", ["rloo", "grpo"])
def test_the_expected_gradient_is_exact_though_the_policy_decides_when_to_stop(
    name: str, n: int, credit: str
) -> None:
    """Over all groups of n, each with its probability.

    rloo is unbiased; the group's mean with the rollout itself in it takes 1/n off, of every turn
    alike. A baseline per turn would not do: which members have a second turn depends on their
    first.
    """
    chosen = algorithm(name, **{"algorithm.scale_by_std": False, "env.credit": credit})
    total = [0.0, 0.0]
    for names in itertools.product(EPISODES, repeat=n):
        weight = math.prod(CHANCE[each] for each in names)
        found = estimated_gradient(chosen, names)
        total = [sum_ + weight * each for sum_, each in zip(total, found, strict=True)]
    scale = 1.0 if name == "rloo" else (n - 1) / n
    assert total == pytest.approx([scale * each for each in GRADIENT], abs=1e-6)


# The reference: one row, one token at a time, in plain Python.

Rows = list[list[float]]


def written(mask: list[int]) -> list[int]:
    return [t for t, m in enumerate(mask) if m]


def plain_token_rewards(case: dict[str, Any]) -> Rows:
    out = []
    for score, mask, turns in zip(case["scores"], case["masks"], case["turns"], strict=True):
        row = [turns[t] if mask[t] else 0.0 for t in range(len(mask))]
        places = written(mask)
        if places:
            row[places[-1]] += score - sum(row)
        out.append(row)
    return out


def plain_whiten(rows: Rows, masks: list[list[int]], valid: Sequence[int]) -> Rows:
    kept = [row[t] for row, m, v in zip(rows, masks, valid, strict=True) if v for t in written(m)]
    if len(kept) < 2:
        return [[0.0] * len(row) for row in rows]
    n = len(kept)
    mean = sum(kept) / (n + 1e-8)  # verl's, which shows where all are alike
    squares = sum((x - mean) ** 2 for x in kept) / (n + 1e-8) * n / (n - 1)
    std = math.sqrt(squares + 1e-8)
    return [
        [(x - mean) / std if m and v else 0.0 for x, m in zip(row, mask, strict=True)]
        for row, mask, v in zip(rows, masks, valid, strict=True)
    ]


def plain_discounted(case: dict[str, Any], rewards: Rows, values: Rows | None) -> tuple[Rows, Rows]:
    """(sums of discounted rewards, or of discounted TD errors; the same plus values)."""
    sums, returns = [], []
    for i, mask in enumerate(case["masks"]):
        row, back = [0.0] * len(mask), [0.0] * len(mask)
        later = next_value = 0.0
        after: int | None = None
        for t in reversed(written(mask)):
            far = after is not None and after > t + 1
            gamma = case["gamma"] * (case["gamma_turn"] if far else 1.0)
            if values is None:
                later = rewards[i][t] + gamma * later
            else:
                delta = rewards[i][t] + gamma * next_value - values[i][t]
                later = delta + gamma * case["lam"] * later
                next_value = values[i][t]
                back[t] = later + next_value
            row[t], after = later, t
        sums.append(row)
        returns.append(back)
    return sums, returns


def plain_group(case: dict[str, Any], rewards: Rows, name: str, *, by_turn: bool) -> Rows:
    out = []
    totals = [sum(row) for row in rewards]
    valid, groups = case["valid"], case["groups"]
    for i, mask in enumerate(case["masks"]):
        members = [j for j in range(len(groups)) if groups[j] == groups[i] and valid[j]]
        if not valid[i] or len(members) < 2:
            out.append([0.0] * len(mask))
            continue
        mean = sum(totals[j] for j in members) / len(members)
        std = math.sqrt(sum((totals[j] - mean) ** 2 for j in members) / (len(members) - 1))
        base = mean
        if name == "rloo":
            base = sum(totals[j] for j in members if j != i) / (len(members) - 1)
        scale = std + 1e-6 if name == "grpo" and case["scale_by_std"] else 1.0
        row = [0.0] * len(mask)
        for t in written(mask):
            gain = sum(rewards[i][u] for u in written(mask) if u >= t) if by_turn else totals[i]
            row[t] = (gain - base) / scale
        out.append(row)
    if name != "reinforce_plus_plus_baseline":
        return out
    active = [
        v and sum(valid[j] for j in range(len(groups)) if groups[j] == g) >= 2
        for v, g in zip(valid, groups, strict=True)
    ]
    return plain_whiten(out, case["masks"], active)


def plain(name: str, case: dict[str, Any], *, by_turn: bool) -> tuple[Rows, Rows | None]:
    rewards = plain_token_rewards(case)
    if name == "reinforce_plus_plus":
        sums, _ = plain_discounted(case, rewards, None)
        return plain_whiten(sums, case["masks"], case["valid"]), None
    if name == "gae":
        sums, returns = plain_discounted(case, rewards, case["values"])
        for row, is_valid in zip(returns, case["valid"], strict=True):
            row[:] = row if is_valid else [0.0] * len(row)
        return plain_whiten(sums, case["masks"], case["valid"]), returns
    return plain_group(case, rewards, name, by_turn=by_turn), None


def random_case(rng: random.Random) -> dict[str, Any]:
    """Rows of every kind: without a token, all holes, one turn, a group of one, unscored."""
    rows, length = rng.randint(1, 7), rng.randint(1, 9)
    masks = []
    for _ in range(rows):
        kind = rng.random()
        density = 0.0 if kind < 0.1 else 1.0 if kind < 0.3 else rng.random()
        masks.append([int(rng.random() < density) for _ in range(length)])
    ties = rng.random() < 0.2
    return {
        "masks": masks,
        "turns": [
            [rng.choice((0.0, rng.gauss(0, 1))) * (not ties) for _ in range(length)]
            for _ in range(rows)
        ],
        "scores": [1.0 if ties else rng.gauss(0, 1) for _ in range(rows)],
        "values": [[rng.gauss(0, 1) for _ in range(length)] for _ in range(rows)],
        "groups": [rng.randrange(3) for _ in range(rows)],
        "valid": [int(rng.random() < 0.85) for _ in range(rows)],
        "gamma": rng.choice((1.0, 0.9)),
        "lam": rng.choice((1.0, 0.7)),
        "gamma_turn": rng.choice((1.0, 0.6, 0.0)),
        "scale_by_std": rng.random() < 0.5,
    }


def tensor(rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def ours(name: str, case: dict[str, Any], *, by_turn: bool) -> tuple[Tensor, Tensor | None]:
    mask, valid = tensor(case["masks"]), tensor(case["valid"])
    rewards = token_rewards(tensor(case["scores"]), mask, turn_rewards_BT=tensor(case["turns"]))
    given: dict[str, Any] = {"valid_B": valid}
    if name in ("gae", "reinforce_plus_plus"):
        given |= {key: case[key] for key in ("gamma", "gamma_turn")}
    else:
        given["group_B"] = torch.tensor(case["groups"])
        given["earned_BT"] = rewards_before(rewards, mask) if by_turn else None
    if name == "gae":
        given |= {"values_BT": tensor(case["values"]), "lam": case["lam"]}
    if name == "grpo":
        given["scale_by_std"] = case["scale_by_std"]
    if name in ("gae", "reinforce_plus_plus", "reinforce_plus_plus_baseline"):
        given["all_reduce"] = alone
    found = getattr(estimators, name)(rewards, mask, **given)
    return found.advantages_BT, found.returns_BT


NAMES = ("gae", "reinforce_plus_plus", "grpo", "rloo", "reinforce_plus_plus_baseline")


@pytest.mark.parametrize("name", NAMES)
def test_masked_rows_agree_with_one_token_at_a_time(name: str) -> None:
    rng = random.Random(name)
    for _ in range(600):
        case, by_turn = random_case(rng), rng.random() < 0.7
        got, returns = ours(name, case, by_turn=by_turn)
        expected, expected_returns = plain(name, case, by_turn=by_turn)
        torch.testing.assert_close(got, tensor(expected), rtol=1e-7, atol=1e-7)
        if expected_returns is not None:
            torch.testing.assert_close(returns, tensor(expected_returns), rtol=1e-9, atol=1e-9)


def plain_aggregate(values: Rows, masks: list[list[int]], kind: str) -> float:
    rows = [[row[t] for t in written(mask)] for row, mask in zip(values, masks, strict=True)]
    rows = [row for row in rows if row]
    tokens = sum(map(len, rows))
    if not rows:
        return 0.0
    if kind == "token_mean":
        return sum(map(sum, rows)) / tokens
    if kind == "token_sum":
        return sum(map(sum, rows))
    if kind == "seq_mean_token_sum":
        return sum(map(sum, rows)) / len(rows)
    if kind == "seq_mean_token_sum_norm":
        return sum(map(sum, rows)) / len(rows) / 7.0
    return sum(sum(row) / len(row) for row in rows) / len(rows)


def test_aggregation_over_rows_with_holes_agrees_with_one_token_at_a_time() -> None:
    rng = random.Random(5)
    kinds = (
        "token_mean",
        "token_sum",
        "seq_mean_token_sum",
        "seq_mean_token_mean",
        "seq_mean_token_sum_norm",
    )
    for _ in range(400):
        case = random_case(rng)
        mask = tensor(case["masks"])
        num_tokens, num_rows = count(mask)
        for kind in kinds:
            got = aggregate(
                tensor(case["values"]),
                mask,
                kind,
                num_tokens=float(num_tokens),
                num_sequences=float(num_rows),
                scale_factor=7.0,
            )
            expected = plain_aggregate(case["values"], case["masks"], kind)
            assert float(got) == pytest.approx(expected, abs=1e-7), kind
