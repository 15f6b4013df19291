"""Rollouts and rewards of a step: refills, holds, and what a missing score does to its group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rollout_parts import CountingSampler, prompt, rollout

from rlcli.config.resolved import with_values
from rlcli.config.schema import Config
from rlcli.distributed.collectives import ALONE
from rlcli.errors import Paused, RewardError
from rlcli.rollout.collate import ScoredRollouts, collate
from rlcli.trainer.rollout_step import StepCancelled, collect, score
from rlcli.types import Prompt, Reward, Rollout

Score = Callable[[Rollout, int], Reward]


class FunctionScorer:
    """Scores by a function of the rollout and of how often it was asked about it."""

    is_service = False

    def __init__(self, function: Score) -> None:
        self.function = function
        self.asked: dict[tuple[str, int], int] = {}
        self.before: list[Reward] = []

    def canaries(self, step: int, prompts: Sequence[Prompt]) -> list[Future[Reward]]:
        return []

    def trouble(self) -> str | None:
        return None

    def normalize(self, rewards: Sequence[Reward], *, update_stats: bool) -> list[Reward]:
        return [*rewards]

    def metrics(self) -> dict[str, float]:
        return {}

    def can_recover(self, unscored: Reward) -> bool:
        return self.is_service or "busy" in (unscored.error or "")

    def submit(self, one: Rollout, *, before: Reward | None = None) -> Future[Reward]:
        self.before += [before] if before else []
        key = (one.prompt.id, len(one.token_ids))
        self.asked[key] = self.asked.get(key, 0) + 1
        future: Future[Reward] = Future()
        future.set_result(self.function(one, self.asked[key]))
        return future


def make_run(score: Score, *, needs: frozenset[str] = frozenset(), **changes: Any) -> Any:
    names = iter(f"p{i}" for i in range(100))
    settings = {"rollout.n": 3, **{k.replace("__", "."): v for k, v in changes.items()}}
    notes: list[str] = []
    return SimpleNamespace(
        config=with_values(Config(), settings),
        sampler=CountingSampler(),
        scorer=FunctionScorer(score),
        algorithm=SimpleNamespace(needs=needs),
        prompts=SimpleNamespace(next=lambda count: [prompt(next(names)) for _ in range(count)]),
        monitor=SimpleNamespace(note=notes.append, stop_requested=False),
        notes=notes,
        seed=lambda *purpose: hash(purpose) % 1000,
        ranks=ALONE,
    )


def by_length(one: Rollout, times: int) -> Reward:
    return Reward(value=float(len(one.token_ids)))


def test_rewards_stand_beside_their_rollouts_whatever_order_they_finish_in() -> None:
    run = make_run(by_length)
    record: dict[str, float] = {}
    got = collect(run, [prompt("a"), prompt("b")], record, step=0)
    assert [r.prompt.id for r in got.rollouts] == ["a"] * 3 + ["b"] * 3
    assert [r.value for r in got.rewards] == [1.0, 2.0, 3.0] * 2
    assert record["reward_mean"] == 2.0
    assert record["response_length_mean"] == 2.0


def test_dynamic_sampling_drops_ties_and_refills_with_new_prompts() -> None:
    def score(one: Rollout, times: int) -> Reward:
        tied = one.prompt.id in ("a", "p0")
        return Reward(value=0.0 if tied else float(len(one.token_ids)))

    run = make_run(score, algorithm__dynamic_sampling=True, train__prompts_per_step=2)
    record: dict[str, float] = {}
    got = collect(run, [prompt("a"), prompt("b")], record, step=0)
    assert list(dict.fromkeys(r.prompt.id for r in got.rollouts)) == ["b", "p1"]
    assert run.sampler.asked == [["a", "b"], ["p0", "p1"]]
    assert record["dynamic_sampling/rounds"] == 2


def test_dynamic_sampling_gives_up_after_max_resample_rounds_and_trains_with_what_there_is() -> (
    None
):
    def score(one: Rollout, times: int) -> Reward:
        return Reward(value=float(len(one.token_ids)) if one.prompt.id == "b" else 1.0)

    run = make_run(
        score,
        algorithm__dynamic_sampling=True,
        algorithm__max_resample_rounds=4,
        train__prompts_per_step=2,
    )
    got = collect(run, [prompt("a"), prompt("b")], {}, step=0)
    assert {r.prompt.id for r in got.rollouts} == {"b"}
    assert len(run.sampler.asked) == 5


def test_a_short_batch_at_the_end_of_an_epoch_is_filled_up() -> None:
    run = make_run(by_length, algorithm__dynamic_sampling=True, train__prompts_per_step=3)
    got = collect(run, [prompt("a")], {}, step=0)
    assert list(dict.fromkeys(r.prompt.id for r in got.rollouts)) == ["a", "p0", "p1"]


def test_greedy_rollouts_are_held_like_the_others() -> None:
    def score(one: Rollout, times: int) -> Reward:
        return Reward(value=None, error="boom") if one.greedy else Reward(value=1.0)

    run = make_run(score, needs=frozenset({"greedy"}))
    with pytest.raises(RewardError, match="boom"):
        collect(run, [prompt("a")], {}, step=0)


def test_a_step_of_ties_alone_is_kept_and_teaches_nothing() -> None:
    run = make_run(
        lambda one, times: Reward(value=1.0),
        algorithm__dynamic_sampling=True,
        algorithm__max_resample_rounds=2,
        train__prompts_per_step=1,
    )
    assert len(collect(run, [prompt("a")], {}, step=0).rollouts) == 3


def test_a_few_unscored_rollouts_are_let_through() -> None:
    def score(one: Rollout, times: int) -> Reward:
        broken = one.prompt.id == "a" and len(one.token_ids) == 1
        return Reward(value=None, error="boom") if broken else Reward(value=1.0)

    run = make_run(score)
    record: dict[str, float] = {}
    got = collect(run, [prompt("a"), prompt("b")], record, step=0)
    assert [r.value for r in got.rewards].count(None) == 1
    assert record["unscored"] == 1


def test_too_many_unscored_are_scored_again() -> None:
    def score(one: Rollout, times: int) -> Reward:
        return Reward(value=None, error="busy") if times == 1 else Reward(value=1.0)

    run = make_run(score)
    got = collect(run, [prompt("a")], {}, step=0)
    assert [r.value for r in got.rewards] == [1.0, 1.0, 1.0]
    assert "scoring them again" in run.notes[0]
    assert [reward.error for reward in run.scorer.before] == ["busy"] * 3


@pytest.mark.parametrize(("is_service", "error"), [(False, RewardError), (True, Paused)])
def test_unscored_three_times_ends_the_run(is_service: bool, error: type[Exception]) -> None:
    run = make_run(lambda one, times: Reward(value=None, error="ZeroDivisionError: x"))
    run.scorer.is_service = is_service
    with pytest.raises(error, match="ZeroDivisionError"):
        collect(run, [prompt("a")], {}, step=0)
    assert set(run.scorer.asked.values()) == {3}


@pytest.mark.parametrize(
    ("errors", "error", "cause"),
    [
        (["busy", "busy", "bug"], RewardError, "bug"),
        (["busy", "bug", "bug"], RewardError, "bug"),
        (["bug", "busy", "busy", "busy", "busy"], Paused, "busy"),
    ],
)
def test_what_stays_broken_once_the_service_is_back_decides(
    errors: list[str], error: type[Exception], cause: str
) -> None:
    run = make_run(
        lambda one, times: Reward(value=None, error=errors[len(one.token_ids) - 1]),
        rollout__n=len(errors),
    )
    with pytest.raises(error, match=f"Last error: {cause}"):
        collect(run, [prompt("a")], {}, step=0)


class SlowScorer(FunctionScorer):
    """Gives one future to all, which ends when the test says so."""

    def __init__(self) -> None:
        super().__init__(by_length)
        self.future: Future[Reward] = Future()

    def submit(self, one: Rollout, *, before: Reward | None = None) -> Future[Reward]:
        return self.future


@pytest.mark.parametrize("needs", [frozenset[str](), frozenset({"greedy"})])
def test_a_stop_ends_the_wait_for_rewards(
    needs: frozenset[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlcli.trainer.rollout_step.STOP_PATIENCE_S", 0.01)
    run = make_run(by_length, needs=needs)
    run.scorer = SlowScorer()
    run.monitor.stop_requested = True
    with pytest.raises(StepCancelled):
        score(run, [rollout("a", 1)])
    with pytest.raises(StepCancelled):
        collect(run, [prompt("a")], {}, step=0)


@pytest.mark.parametrize("error", [TimeoutError("of a socket"), CancelledError(), KeyError("x")])
def test_an_exception_in_a_future_is_raised_and_not_waited_for(error: Exception) -> None:
    run = make_run(by_length)
    run.scorer = SlowScorer()
    run.scorer.future.set_exception(error)
    with pytest.raises(type(error)):
        score(run, [rollout("a", 1)])


def test_what_a_judge_took_is_summed_over_every_try() -> None:
    def judged(one: Rollout, times: int) -> Reward:
        usage = {"calls": 2.0, "input_tokens": 100.0, "cost_usd": 0.5}
        return Reward(value=None if times == 1 else 1.0, error="busy", usage=usage)

    run = make_run(judged, needs=frozenset({"greedy"}), reward__judge__enabled=True)
    record: dict[str, float] = {}
    collect(run, [prompt("a")], record, step=0)
    # 3 rollouts twice; the greedy one has the key of the shortest of them and is scored once
    assert record["judge/calls"] == 14
    assert record["judge/input_tokens"] == 700
    assert record["judge/output_tokens"] == 0
    assert record["judge/cost_usd"] == 3.5


def test_without_a_judge_there_is_no_usage() -> None:
    record: dict[str, float] = {}
    collect(make_run(by_length), [prompt("a")], record, step=0)
    assert not [name for name in record if name.startswith("judge/")]


def collected(values: list[float | None], names: list[str]) -> ScoredRollouts:
    rollouts = [rollout(name, 2 + i) for i, name in enumerate(names)]
    rewards = [Reward(value=v) for v in values]
    return ScoredRollouts(rollouts=rollouts, rewards=rewards, greedy={})


def test_an_unscored_row_stays_with_valid_0() -> None:
    batch = collate(collected([1.0, None, 0.5], ["a", "a", "a"]), needs=frozenset({"group"}))
    assert batch.valid_B.tolist() == [1.0, 0.0, 1.0]
    assert batch.rewards_B.tolist() == [1.0, 0.0, 0.5]


def test_fewer_than_two_scores_mask_the_whole_group() -> None:
    both = collected([1.0, None, 0.5, 0.25], ["a", "a", "b", "b"])
    assert collate(both, needs=frozenset({"group"})).valid_B.tolist() == [0.0, 0.0, 1.0, 1.0]
    assert collate(both, needs=frozenset()).valid_B.tolist() == [1.0, 0.0, 1.0, 1.0]


def test_an_unscored_greedy_rollout_masks_its_prompt() -> None:
    both = collected([1.0, 0.0, 0.5, 0.25], ["a", "a", "b", "b"])
    greedy = {"a": Reward(value=None), "b": Reward(value=0.75)}
    whole = ScoredRollouts(rollouts=both.rollouts, rewards=both.rewards, greedy=greedy)
    batch = collate(whole, needs=frozenset({"greedy"}))
    assert batch.valid_B.tolist() == [0.0, 0.0, 1.0, 1.0]
    assert batch.baseline_B is not None
    assert batch.baseline_B.tolist() == [0.0, 0.0, 0.75, 0.75]


def test_the_batch_holds_the_tokens_right_padded() -> None:
    batch = collate(collected([1.0, 0.0], ["a", "b"]), needs=frozenset())
    assert batch.token_ids_BT.tolist() == [[5, 6, 0], [5, 6, 7]]
    assert batch.response_mask_BT.tolist() == [[1, 1, 0], [1, 1, 1]]
    torch.testing.assert_close(batch.rollout_logprobs_BT[1], torch.tensor([0.0, -0.1, -0.2]))
    assert batch.prompt_ids == ((3, 4), (3, 4))
    assert batch.group_B.tolist() == [0, 1]


def test_gdpo_refuses_rollouts_with_different_parts() -> None:
    rollouts = [rollout("a", 2), rollout("a", 3)]
    rewards = [Reward(value=1.0, parts={"x": 1.0, "y": 0.0}), Reward(value=1.0, parts={"x": 1.0})]
    whole = ScoredRollouts(rollouts=rollouts, rewards=rewards, greedy={})
    with pytest.raises(RewardError, match="lacks y"):
        collate(whole, needs=frozenset({"parts"}))
