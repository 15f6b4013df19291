"""Parts of rewards, which gdpo needs of every rollout."""

from __future__ import annotations

from typing import Any

import pytest

from rlcli.errors import RewardError
from rlcli.rollout.collate import ScoredRollouts, check_parts, kinds_of_parts, with_all_parts
from rlcli.types import Prompt, Reward, Rollout, Turn


def scored(*parts: dict[str, float] | None, turns: tuple[Any, ...]) -> ScoredRollouts:
    one = Rollout(
        prompt=Prompt(id="p", messages=(), token_ids=(5,)),
        text="",
        token_ids=(7,),
        logprobs=(-0.1,),
        finish_reason="stop",
        policy_version=0,
        turns=turns,
    )
    rewards = [Reward(value=None) if p is None else Reward(value=1.0, parts=p) for p in parts]
    return ScoredRollouts(rollouts=[one] * len(parts), rewards=rewards, greedy={})


def test_a_part_that_no_step_of_an_episode_gave_is_0() -> None:
    turn = Turn(text="", num_tokens=1, finish_reason="stop")
    given = scored({"form": 1.0}, {}, None, turns=(turn,))
    found = with_all_parts(given, {("form",), ("goal",)})
    assert [reward.parts for reward in found.rewards] == [
        {"form": 1.0, "goal": 0.0},
        {"form": 0.0, "goal": 0.0},
        {},
    ]
    check_parts(kinds_of_parts(found.rewards))


def test_a_part_that_a_function_left_out_is_an_error() -> None:
    given = scored({"form": 1.0}, {}, turns=())
    found = with_all_parts(given, kinds_of_parts(given.rewards))
    with pytest.raises(RewardError, match="form"):
        check_parts(kinds_of_parts(found.rewards))
