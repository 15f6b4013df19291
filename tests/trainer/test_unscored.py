"""What a rollout without a score does to its group, its step and the scale: nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from held_scorer import Held
from rollout_parts import CountingSampler, prompt, rollout

from rlcli.algos.algorithm import Algorithm
from rlcli.algos.registry import ESTIMATORS
from rlcli.config.resolved import with_values
from rlcli.config.schema import Config
from rlcli.distributed.collectives import ALONE
from rlcli.errors import Paused
from rlcli.rewards.composite_scorer import CompositeScorer, weighted_sum
from rlcli.rewards.normalize import RunningScale
from rlcli.rollout.collate import ScoredRollouts, collate
from rlcli.trainer.loop import collect_or_restore
from rlcli.types import AnnotatedBatch, Prompt, Reward, Rollout

WEIGHTS = {"rm_score": 0.7, "rule_score": 0.3}
SCORES = [("a", 2.0, 1.0), ("a", None, 1.0), ("a", -1.0, 0.0), ("b", 5.0, 0.0), ("b", 1.0, 1.0),
          ("b", 0.5, None), ("b", 3.0, 1.0)]  # fmt: skip
"""Prompt, reward model's score and rule's; None where that part failed."""


def mixed(rm: float | None, rule: float | None) -> Reward:
    values = {"rm_score": rm, "rule_score": rule}
    parts = {name: Reward(value=value, error="busy") for name, value in values.items()}
    return weighted_sum(parts, weights=WEIGHTS)


def advantages_of(name: str, rows: Sequence[int]) -> torch.Tensor:
    """[B, T] for these rows of SCORES, through the mix, its scale, the batch and the estimator."""
    scorer = CompositeScorer({part: Held() for part in WEIGHTS}, WEIGHTS, scale=RunningScale("m"))
    rewards = scorer.normalize([mixed(*SCORES[row][1:]) for row in rows], update_stats=True)
    whole = ScoredRollouts(
        rollouts=[rollout(SCORES[row][0], 4) for row in rows],
        rewards=rewards,
        greedy={"a": Reward(value=0.5), "b": Reward(value=0.25)},
    )
    settings = {"algorithm.advantage": name, "reward.weights": WEIGHTS}
    algorithm = Algorithm(with_values(Config(), settings), corrects_sampler=False)
    batch = collate(whole, needs=algorithm.needs)
    shape = batch.response_mask_BT.shape
    fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    annotated = AnnotatedBatch(
        **fields,
        old_logprobs_BT=torch.full(shape, -0.5),
        values_BT=torch.full(shape, 0.1),
        sum_pi_squared_BT=torch.full(shape, 0.3),
    )
    return algorithm.advantages(annotated, all_reduce=ALONE.all_reduce).advantages_BT


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_group_learns_as_if_its_unscored_rollout_had_never_been_sampled(name: str) -> None:
    scored = [row for row, (_, rm, rule) in enumerate(SCORES) if None not in (rm, rule)]
    everything = advantages_of(name, range(len(SCORES)))
    torch.testing.assert_close(everything[scored], advantages_of(name, scored))
    unscored = [row for row in range(len(SCORES)) if row not in scored]
    assert not everything[unscored].any()


class Timed(Held):
    """Scores by the length of the response; its canary ends the run."""

    def submit(self, rollout: Rollout, *, before: Reward | None = None) -> Future[Reward]:
        super().submit(rollout)
        self.futures[-1].set_result(Reward(value=float(len(rollout.token_ids))))
        return self.futures[-1]

    def canaries(self, step: int, prompts: Sequence[Prompt]) -> list[Future[Reward]]:
        ended: Future[Reward] = Future()
        ended.set_exception(Paused("the key is refused"))
        return [ended] if step == 1 else []


def test_a_step_that_is_given_up_leaves_the_scale_as_it_was() -> None:
    names = iter("abc")
    kept: list[dict[str, Any]] = []
    scorer = CompositeScorer({"rm_score": Timed()}, {"rm_score": 1.0}, scale=RunningScale("m"))
    run: Any = SimpleNamespace(
        config=with_values(Config(), {"rollout.n": 3}),
        sampler=CountingSampler(),
        scorer=scorer,
        algorithm=SimpleNamespace(needs=frozenset()),
        prompts=SimpleNamespace(
            next=lambda count: [prompt(next(names))],
            state=dict,
            load_state=lambda state: None,
        ),
        monitor=SimpleNamespace(note=None, stop_requested=False),
        checkpoints=SimpleNamespace(save=lambda done, run: kept.append(run.scorer.state())),
        seed=lambda *purpose: 0,
        ranks=ALONE,
    )
    collect_or_restore(run, {}, 0)
    after_one = scorer.state()
    # lengths 1, 2, 3: mean 2, squares 1 + 0 + 1
    assert after_one["scale"]["training"] == [3, 2.0, 2.0]
    with pytest.raises(Paused):
        collect_or_restore(run, {}, 1)
    assert kept == [after_one]
