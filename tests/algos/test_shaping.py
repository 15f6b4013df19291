from __future__ import annotations

import pytest
import torch

from rlcli.algos.reward_shaping import overlong_penalty, token_rewards


def test_overlong_penalty_grows_over_the_buffer():
    lengths = torch.tensor([0, 80, 85, 90, 100])
    got = overlong_penalty(lengths, max_tokens=100, buffer_fraction=0.2, factor=2.0)
    assert got.tolist() == pytest.approx([0.0, 0.0, -0.5, -1.0, -2.0])


def test_the_score_is_on_the_last_response_token():
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]])
    got = token_rewards(torch.tensor([1.0, 2.0, 3.0, 4.0]), mask)
    assert got.tolist() == [[0, 0, 1, 0], [0, 0, 2, 0], [0, 0, 0, 0], [0, 0, 0, 4]]


def test_kl_is_subtracted_on_every_response_token():
    mask = torch.tensor([[1, 0, 1], [0, 0, 0]])
    kl = torch.tensor([[0.5, torch.nan, -1.0], [9.0, torch.inf, 9.0]])
    got = token_rewards(torch.tensor([2.0, 3.0]), mask, kl_BT=kl, kl_coef=0.1)
    assert got[0].tolist() == pytest.approx([-0.05, 0.0, 2.1])
    assert got[1].tolist() == [0.0, 0.0, 0.0]
