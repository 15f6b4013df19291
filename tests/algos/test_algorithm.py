"""The put-together algorithm: which parts meet where, and what a user's own function gets."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rlcli.algos.algorithm import Algorithm
from rlcli.config.resolved import with_values
from rlcli.config.schema import Config
from rlcli.errors import ConfigError
from rlcli.types import AnnotatedBatch


def config(**changes: Any) -> Config:
    base = {"algorithm.advantage": "rloo", "data.max_response_tokens": 10}
    return with_values(Config(), {**base, **{k.replace("__", "."): v for k, v in changes.items()}})


def one(x: torch.Tensor, /) -> torch.Tensor:
    return x


def batch(**changes: Any) -> AnnotatedBatch:
    """Two rollouts of one prompt: 2 and 3 tokens, rewards 1 and 0."""
    values: dict[str, Any] = {
        "prompt_ids": ((1, 2),),
        "group_B": torch.tensor([0, 0]),
        "token_ids_BT": torch.tensor([[5, 6, 0], [7, 8, 9]]),
        "lengths_B": torch.tensor([2, 3]),
        "response_mask_BT": torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]),
        "rollout_logprobs_BT": torch.full((2, 3), -1.0),
        "rewards_B": torch.tensor([1.0, 0.0]),
        "valid_B": torch.ones(2),
        "truncated_B": torch.tensor([False, False]),
        "old_logprobs_BT": torch.full((2, 3), -1.0),
    }
    return AnnotatedBatch(**{**values, **changes})


def test_rloo_without_kl_is_the_score_minus_the_others() -> None:
    algorithm = Algorithm(config(), corrects_sampler=False)
    got = algorithm.advantages(batch(), all_reduce=one)
    assert got.advantages_BT.tolist() == [[1.0, 1.0, 0.0], [-1.0, -1.0, -1.0]]
    assert got.loss_mask_BT is not None
    assert got.loss_mask_BT.tolist() == [[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]
    assert "kl_divergence" not in got.stats


def test_kl_in_reward_lowers_the_score_of_the_row_that_strayed() -> None:
    """Row 0 is 0.5 nats above the reference on both tokens: its score is 1 - 0.1 * 2 * 0.5."""
    reference = torch.tensor([[-1.5, -1.5, 0.0], [-1.0, -1.0, -1.0]])
    settings = config(algorithm__kl_in_reward=True, algorithm__kl_coef=0.1)
    algorithm = Algorithm(settings, corrects_sampler=False)
    got = algorithm.advantages(batch(ref_logprobs_BT=reference), all_reduce=one)
    torch.testing.assert_close(got.advantages_BT[0, 0], torch.tensor(0.9))
    assert got.stats["kl_divergence"] == pytest.approx(2 * 0.5 / 5)
    assert got.stats["kl_in_reward"] == pytest.approx((0.5 + 0.0) / 2)


def test_the_adaptive_controller_moves_with_the_measured_kl() -> None:
    """KL 0.25 at target 0.1 is clipped to +0.2: 0.1 * (1 + 0.2 * 2 / 10)."""
    reference = torch.tensor([[-1.5, -1.5, 0.0], [-1.0, -1.0, -1.0]])
    settings = config(
        algorithm__kl_in_reward=True,
        algorithm__kl_coef=0.1,
        algorithm__kl_controller="adaptive",
        algorithm__kl_horizon=10,
    )
    algorithm = Algorithm(settings, corrects_sampler=False)
    algorithm.advantages(batch(ref_logprobs_BT=reference), all_reduce=one)
    assert algorithm.kl.coef == pytest.approx(0.1 * 1.04)


def test_overlong_penalty_and_filter() -> None:
    """Limit 10, buffer 2: 9 tokens lose half the factor; 10 tokens are filtered out."""
    some = batch(lengths_B=torch.tensor([9, 10]), truncated_B=torch.tensor([False, True]))
    settings = config(
        algorithm__overlong_penalty=True,
        algorithm__overlong_factor=1.0,
        algorithm__overlong_filter=True,
    )
    got = Algorithm(settings, corrects_sampler=False).advantages(some, all_reduce=one)
    assert got.advantages_BT[0, 0].item() == pytest.approx((1.0 - 0.5) - (0.0 - 1.0))
    assert got.loss_mask_BT is not None
    assert got.loss_mask_BT.tolist() == [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


def test_the_correction_weighs_the_loss_by_trainer_over_sampler() -> None:
    sampled = torch.full((2, 3), -1.0) - torch.tensor([[0.5, 0.0, 0.0], [2.0, 0.0, 0.0]])
    algorithm = Algorithm(config(algorithm__correction="token"), corrects_sampler=True)
    some = batch(rollout_logprobs_BT=sampled)
    got = algorithm.advantages(some, all_reduce=one)
    assert got.correction_BT is not None
    torch.testing.assert_close(got.correction_BT[0, 0], torch.tensor(0.5).exp())
    torch.testing.assert_close(got.correction_BT[1, 0], torch.tensor(2.0))
    plain = Algorithm(config(), corrects_sampler=False)
    entropy = torch.zeros(2, 3)
    now = some.old_logprobs_BT
    weighed = algorithm.policy_loss(now, entropy, some, got, None).loss_BT
    base = plain.policy_loss(now, entropy, some, plain.advantages(some, all_reduce=one), None)
    torch.testing.assert_close(weighed, base.loss_BT * got.correction_BT)


def test_rejection_leaves_a_strayed_rollout_out() -> None:
    sampled = torch.tensor([[-1.0, -1.0, 0.0], [-4.0, -4.0, -4.0]])
    algorithm = Algorithm(config(algorithm__rejection="seq_k1"), corrects_sampler=False)
    got = algorithm.advantages(batch(rollout_logprobs_BT=sampled), all_reduce=one)
    assert got.loss_mask_BT is not None
    assert got.loss_mask_BT.sum(1).tolist() == [2.0, 0.0]
    assert got.stats["sampler/rejected"] == pytest.approx(3 / 5)


def test_entropy_and_kl_terms_are_added_per_token() -> None:
    reference = torch.full((2, 3), -1.2)
    settings = config(
        algorithm__entropy_coef=0.5, algorithm__kl_loss=True, algorithm__kl_loss_coef=2.0,
        algorithm__kl_loss_type="k1",
    )  # fmt: skip
    algorithm = Algorithm(settings, corrects_sampler=False)
    some = batch(ref_logprobs_BT=reference)
    aims = algorithm.advantages(some, all_reduce=one)
    entropy = torch.full((2, 3), 0.3)
    loss = algorithm.policy_loss(some.old_logprobs_BT, entropy, some, aims, None).loss_BT
    assert loss[0, 0].item() == pytest.approx(-1.0 - 0.5 * 0.3 + 2.0 * 0.2)
    assert loss[1, 2].item() == pytest.approx(1.0 - 0.5 * 0.3 + 2.0 * 0.2)


OWN = """
from rlcli.types import Advantages, TokenLoss

def my_advantage(token_rewards_BT, response_mask_BT, *, group_B, gamma):
    scores_B1 = token_rewards_BT.sum(1, keepdim=True)
    return Advantages(advantages_BT=scores_B1 * response_mask_BT + gamma)

def my_loss(logprobs_BT, old_logprobs_BT, advantages_BT, response_mask_BT, *, clip_high):
    return TokenLoss(loss_BT=-advantages_BT * logprobs_BT * clip_high, stats_BT={})

def wrong(token_rewards_BT, response_mask_BT, *, weather):
    return None
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_algorithm.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("own_algorithm", None)
    return "own_algorithm"


def test_a_users_own_functions_get_what_they_name(own_module: str) -> None:
    settings = config(
        algorithm__advantage=f"{own_module}:my_advantage",
        algorithm__loss=f"{own_module}:my_loss",
        algorithm__gamma=0.25,
        algorithm__clip_high=3.0,
    )
    algorithm = Algorithm(settings, corrects_sampler=False)
    assert algorithm.needs == {"group"}
    got = algorithm.advantages(batch(), all_reduce=one)
    assert got.advantages_BT[0].tolist() == [1.25, 1.25, 0.25]
    some = batch()
    loss = algorithm.policy_loss(some.old_logprobs_BT, torch.zeros(2, 3), some, got, None)
    assert loss.loss_BT[0, 0].item() == pytest.approx(1.25 * 3.0)


def test_a_function_that_asks_for_what_no_run_has_is_refused(own_module: str) -> None:
    settings = config(algorithm__advantage=f"{own_module}:wrong")
    with pytest.raises(ConfigError, match="asks for weather"):
        Algorithm(settings, corrects_sampler=False)
    with pytest.raises(ConfigError, match="cannot be imported"):
        Algorithm(config(algorithm__advantage="no_such_module:f"), corrects_sampler=False)
