"""Several verdicts on one response: their median, what they cost, and faults among them."""

from __future__ import annotations

import itertools
import statistics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from judge_server import ENDLESS_S, Act, Call

from rlcli.errors import Paused
from rlcli.rewards.base import score_all
from rlcli.rewards.judge import check_judge
from rlcli.rewards.judge.call import Verdict
from rlcli.rewards.judge.faults import Fault, Kind
from rlcli.rewards.judge.panel_member import median_of


def says(score: int, reason: str = "sound") -> Act:
    return Act(text=f'{{"reason": "{reason}", "score": {score}}}')


def voted(score: float | None, **more: Any) -> Verdict:
    fault = Fault(Kind.BAD, f"vote {more}") if score is None else None
    return Verdict(score=score, fault=fault, **more)


def test_the_median_counts_with_the_reason_of_the_nearest_vote(
    serve: Any, scorer: Any, answer: Any
) -> None:
    acts = itertools.cycle([says(2, "wrong"), says(9, "right"), says(7, "nearly")])
    server = serve(lambda call: next(acts))
    (reward,) = score_all(scorer(server, votes=3), [answer("It is 42.")])
    assert reward.value == pytest.approx((7 - 1) / 9)
    assert reward.reason == "nearly"
    assert len(server.calls) == 3
    assert reward.usage == pytest.approx(
        {"calls": 3.0, "input_tokens": 300.0, "output_tokens": 60.0, "cost_usd": 3 * 27e-6}
    )


def test_votes_are_cast_at_once(serve: Any, scorer: Any, answer: Any) -> None:
    server = serve(Act(until=lambda: server.most_in_flight == 5))
    score_all(scorer(server, votes=5), [answer("It is 42.")])
    assert server.most_in_flight == 5


@pytest.mark.parametrize(("votes", "temperature"), [(1, 0.0), (2, 1.0)])
def test_votes_are_cast_at_a_temperature_at_which_they_can_differ(
    votes: int, temperature: float, serve: Any, scorer: Any, answer: Any
) -> None:
    for provider in ("openai", "dashscope", "gemini"):
        server = serve(Act())
        score_all(scorer(server, provider, votes=votes), [answer("It is 42.")])
        for call in server.calls:
            sent = call.body.get("generationConfig", call.body)
            assert sent["temperature"] == temperature


@pytest.mark.parametrize(
    ("scores", "value"),
    [
        ([3, None, 9], 6.0),  # two of three are most
        ([3, None, None], None),
        ([4, 6, None, None], None),  # half is not
        ([4, 6, 7, None], 6.0),
        ([None], None),
    ],
)
def test_most_votes_must_have_a_score(scores: list[float | None], value: float | None) -> None:
    verdict = median_of([voted(score) for score in scores])
    assert verdict.score == value
    assert (verdict.fault is None) == (value is not None)


def test_without_a_majority_the_first_fault_is_told(serve: Any, scorer: Any, answer: Any) -> None:
    acts = itertools.cycle([Act(finish="blocked", text=""), says(8), Act(text="no")])
    server = serve(lambda call: next(acts) if call.attempt <= 3 else Act(text="no"))
    (reward,) = score_all(scorer(server, votes=3, concurrency=1), [answer("It is 42.")])
    assert reward.value is None
    assert reward.error == "judge: blocked by a content filter"
    assert reward.usage["calls"] == len(server.calls) == 4


@given(st.lists(st.integers(1, 10), min_size=1, max_size=9))
def test_the_median_is_the_medians_and_its_reason_is_of_a_vote_no_other_is_nearer(
    scores: list[int],
) -> None:
    verdict = median_of([voted(score, reason=str(score)) for score in scores])
    assert verdict.score == statistics.median(scores)
    assert verdict.reason is not None
    assert verdict.score is not None
    distance = abs(int(verdict.reason) - verdict.score)
    assert distance == min(abs(score - verdict.score) for score in scores)


def test_equal_rollouts_in_flight_share_all_votes(serve: Any, scorer: Any, answer: Any) -> None:
    server = serve(Act(until=lambda: judge._tally._counts.get("dedup_hits") == 3))
    judge = scorer(server, votes=3)
    score_all(judge, [answer("It is 42.")] * 4)
    assert len(server.calls) == 3
    assert judge.metrics()["judge/dedup_hits"] == 3


def test_a_vote_that_had_no_score_is_cast_again_and_no_other(
    serve: Any, scorer: Any, answer: Any, tmp_path: Any
) -> None:
    """The second try of an unscored rollout asks for what is missing."""
    is_well = False

    def behave(call: Call) -> Act:
        return says(8) if is_well or call.attempt == 1 else Act(text="no")

    server = serve(behave)
    judge = scorer(server, votes=3, concurrency=1, run_dir=tmp_path)
    assert score_all(judge, [answer("It is 42.")])[0].value is None
    asked, is_well = len(server.calls), True
    (reward,) = score_all(judge, [answer("It is 42.")])
    assert reward.value == pytest.approx(7 / 9)
    assert len(server.calls) - asked == 2
    assert judge.metrics()["judge/cache_hits"] == 1


def test_a_fatal_fault_of_one_vote_ends_all(serve: Any, scorer: Any, answer: Any) -> None:
    endless = Act(latency_s=ENDLESS_S)
    server = serve(lambda call: Act(status=401) if len(server.calls) == 2 else endless)
    judge = scorer(server, votes=3, timeout_s=ENDLESS_S)
    with pytest.raises(Paused, match="the key is refused"):
        judge.submit(answer("It is 42.")).result(timeout=60)
    with pytest.raises(Paused):
        judge.submit(answer("It is 43.")).result(timeout=60)


def test_votes_are_told(settings: Any, serve: Any) -> None:
    env = {"OPENAI_API_KEY": "k"}
    told = " ".join(check_judge(settings(serve(Act()), votes=3), env))
    assert "judged 3 times, at temperature 1" in told
    assert "temperature" not in " ".join(check_judge(settings(serve(Act())), env))
