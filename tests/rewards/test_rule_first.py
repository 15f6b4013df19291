"""A judge that is asked only where the rule cannot decide."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest
from held_scorer import Held

from rlcli.errors import Paused
from rlcli.rewards.base import score_all
from rlcli.rewards.rule_first_scorer import RuleFirstScorer
from rlcli.types import Reward, Rollout

OPEN = Reward(value=0.0, is_undecided=True)


@pytest.fixture
def both() -> tuple[RuleFirstScorer, Held, Held]:
    rule, judge = Held(), Held(is_service=True)
    return RuleFirstScorer(rule, judge), rule, judge


def test_what_the_rule_decides_is_final_and_costs_no_call(both: Any, rollout: Any) -> None:
    scorer, rule, judge = both
    futures = [scorer.submit(rollout("x")) for _ in range(2)]
    rule.futures[0].set_result(Reward(value=1.0, parts={"form": 0.5}))
    rule.futures[1].set_result(Reward(value=0.0))
    assert [future.result(timeout=60) for future in futures] == [
        Reward(value=1.0, parts={"rule_score": 1.0}),
        Reward(value=0.0, parts={"rule_score": 0.0}),
    ]
    assert judge.futures == []


@pytest.mark.parametrize("word", [OPEN, Reward(value=None, error="no gold", is_undecided=True)])
def test_the_judge_is_asked_the_moment_the_rule_gives_up(
    word: Reward, both: Any, rollout: Any
) -> None:
    scorer, rule, judge = both
    whole = scorer.submit(rollout("x"))
    assert judge.futures == []
    rule.futures[0].set_result(word)
    assert len(judge.futures) == 1
    verdict = Reward(value=0.75, parts={"judge": 0.75}, usage={"calls": 1.0}, reason="close")
    judge.futures[0].set_result(verdict)
    assert whole.result(timeout=60) == verdict


def test_a_rule_that_fails_is_no_matter_for_the_judge(both: Any, rollout: Any) -> None:
    scorer, rule, judge = both
    whole = scorer.submit(rollout("x"))
    rule.futures[0].set_result(Reward(value=None, error="KeyError: 'x'"))
    failed = whole.result(timeout=60)
    assert failed == Reward(value=None, error="KeyError: 'x'")
    assert judge.futures == []
    assert not scorer.can_recover(failed)
    scorer.submit(rollout("x"), before=failed)
    assert len(rule.futures) == 2


def test_where_the_judge_failed_only_it_is_asked_again(both: Any, rollout: Any) -> None:
    scorer, rule, judge = both
    whole = scorer.submit(rollout("x"))
    rule.futures[0].set_result(OPEN)
    judge.futures[0].set_result(Reward(value=None, error="busy", usage={"calls": 5.0}))
    failed = whole.result(timeout=60)
    assert failed.value is None
    assert failed.parts == {}
    assert failed.usage == {"calls": 5.0}
    assert scorer.can_recover(failed)
    again = scorer.submit(rollout("x"), before=failed)
    judge.futures[1].set_result(Reward(value=0.25, parts={"judge": 0.25}))
    assert again.result(timeout=60) == Reward(value=0.25, parts={"judge": 0.25})
    assert len(rule.futures) == 1


def test_the_share_that_the_judge_was_asked_about(both: Any, rollout: Any) -> None:
    scorer, rule, judge = both
    futures = [scorer.submit(rollout("x")) for _ in range(5)]
    for future, word in zip(rule.futures, [Reward(value=1.0)] * 3 + [OPEN], strict=False):
        future.set_result(word)
    rule.futures[4].set_result(Reward(value=None, error="boom"))
    judge.futures[0].set_result(Reward(value=None, error="busy"))
    scorer.submit(rollout("x"), before=futures[3].result(timeout=60))
    # of the four that the rule looked at; a second try is no second response
    assert scorer.metrics() == {"judge/retries": 2.0, "judge/asked_share": 0.25}
    assert scorer.metrics() == {"judge/retries": 2.0}


def test_a_judge_that_ends_the_run_ends_what_waits_for_it(both: Any, rollout: Any) -> None:
    scorer, rule, judge = both
    whole = scorer.submit(rollout("x"))
    rule.futures[0].set_result(OPEN)
    judge.futures[0].set_exception(Paused("the key is refused"))
    with pytest.raises(Paused, match="refused"):
        whole.result(timeout=60)


def test_a_bug_in_either_is_seen_by_whoever_waits(both: Any, rollout: Any) -> None:
    scorer, rule, judge = both
    broken, late = scorer.submit(rollout("x")), scorer.submit(rollout("x"))
    rule.futures[0].set_exception(ZeroDivisionError())
    assert isinstance(broken.exception(timeout=60), ZeroDivisionError)
    scorer.close()
    assert rule.is_closed
    assert judge.is_closed
    rule.futures[1].set_result(OPEN)
    assert isinstance(late.exception(timeout=60), RuntimeError)


def test_what_is_cancelled_ends_without_a_score(both: Any, rollout: Any) -> None:
    scorer, rule, judge = both
    futures = [scorer.submit(rollout("x")) for _ in range(3)]
    rule.futures[0].cancel()
    rule.futures[1].set_result(OPEN)
    judge.futures[0].cancel()
    for future in futures[:2]:
        assert future.result(timeout=60).error == "the scorer was closed"
    assert futures[2].cancel()
    rule.futures[2].set_result(Reward(value=1.0))
    assert futures[2].cancelled()


def test_money_and_canaries_are_the_judges(both: Any) -> None:
    scorer, _, judge = both
    assert scorer.state() == {"spent_usd": 1.5}
    scorer.load_state({"spent_usd": 2.5})
    assert judge.kept == {"spent_usd": 2.5}
    assert len(scorer.canaries(0, [])) == 1
    assert scorer.normalize([OPEN], update_stats=True) == [OPEN]


class Half(Held):
    """A judge that gives everything 0.5 at once."""

    def submit(self, rollout: Rollout, *, before: Reward | None = None) -> Future[Reward]:
        super().submit(rollout)
        self.futures[-1].set_result(Reward(value=0.5, parts={"judge": 0.5}))
        return self.futures[-1]


def test_real_rules_decide_what_they_can(pool: Any, rollout: Any) -> None:
    rows = [
        rollout("#### 7", "7", "gsm8k"),
        rollout("#### 8", "7", "gsm8k"),
        rollout("I do not know.", "7", "gsm8k"),
        rollout("The answer is 7 or 8.", "7", "gsm8k"),
        rollout("#### 7", "seven", "gsm8k"),
        rollout(r"\boxed{x} or \boxed{y}", "x", "math"),
        rollout(r"\boxed{y}", "x", "math"),
        rollout("Because of the rain.", "rain", "essays"),
        rollout("", "", "exact"),
    ]
    judge = Half(is_service=True)
    rewards = score_all(RuleFirstScorer(pool("rules"), judge), rows)
    assert [reward.value for reward in rewards] == [1.0, 0.0, 0.5, 0.5, 0.5, 0.5, 0.0, 0.5, 0.5]
    assert [*rewards[0].parts] == ["rule_score"]
    assert [*rewards[2].parts] == ["judge"]


def test_a_function_of_ones_own_gives_up_with_none(user_file: Any, pool: Any, rollout: Any) -> None:
    fn = user_file(
        "def compute_score(data_source, solution_str, ground_truth):\n"
        "    return {'none': None, 'right': 1, 'boom': [][:1]}[solution_str]\n"
    )
    rows = [rollout(text) for text in ("none", "right", "boom", "raise")]
    rewards = score_all(RuleFirstScorer(pool(fn), Half()), rows)
    assert [reward.value for reward in rewards] == [0.5, 1.0, None, None]
    alone = score_all(pool(fn), rows)[0]
    assert alone.value is None
    assert alone.error is not None
    assert alone.error.startswith("the reward returned NoneType None")
