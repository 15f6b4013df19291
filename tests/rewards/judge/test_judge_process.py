"""The judge in a process of its own: the same rewards, and an end that loses nothing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, wait
from pathlib import Path
from typing import Any

import psutil
import pytest
from judge_server import Act, Call, JudgeServer

from rlcli.errors import Paused, RewardError
from rlcli.rewards.base import score_all
from rlcli.rewards.judge import JudgeProcess

KEY = "sk-canary-0123456789"


@pytest.fixture
def apart(settings: Any, tmp_path: Path) -> Iterator[Any]:
    """apart(server, **fields) -> JudgeProcess in tmp_path."""
    made: list[JudgeProcess] = []

    def make(server: JudgeServer, **fields: Any) -> JudgeProcess:
        config = settings(server, **fields)
        env = {"OPENAI_API_KEY": KEY}
        log = tmp_path / "reward.log"
        made.append(JudgeProcess(config, env=env, lang="en", run_dir=tmp_path, log=log))
        return made[-1]

    yield make
    for one in made:
        one.close()


def children() -> list[psutil.Process]:
    """The judges' processes that are there."""
    found = psutil.Process().children()
    return [child for child in found if "rlcli.rewards.judge.child" in " ".join(child.cmdline())]


def wait_until(holds: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def counts_of(judge: Any) -> dict[str, float]:
    """What a judge counted, without times; without a run there is no cache to hit."""
    found = {name: value for name, value in judge.metrics().items() if not name.endswith("_s")}
    found.pop("judge/cache_hits", None)
    return found


def by_text(call: Call) -> Act:
    return Act(text='{"reason": "as it is", "score": 7}' if "It is so" in call.user else "{}")


def test_it_scores_counts_and_spends_as_the_judge_in_this_process(
    serve: Any, scorer: Any, apart: Any, answer: Any, tmp_path: Path
) -> None:
    answers = [answer("It is so: 42."), answer("It is left: 41."), answer("")]
    here, there = scorer(serve(by_text), max_cost=1.0), apart(serve(by_text), max_cost=1.0)
    expected = score_all(here, answers)
    assert score_all(there, answers) == expected
    assert [reward.value for reward in expected] == [6 / 9, None, 0.0]
    assert counts_of(there) == counts_of(here)
    assert there.state() == here.state()
    assert there.state()["spent_usd"] > 0.0
    assert there.can_recover(expected[1])


def test_canaries_are_due_and_judged_afresh(serve: Any, apart: Any, answer: Any) -> None:
    server = serve(Act())
    judge = apart(server, canary_every=2)
    prompts = [answer("It is 42.").prompt]
    assert judge.canaries(1, prompts) == []
    for _ in range(2):
        given = [future.result() for future in judge.canaries(2, prompts)]
        assert [reward.value for reward in given] == [7 / 9] * 3
    assert len(server.calls) == 6


def test_a_process_that_is_killed_leaves_rollouts_unscored_and_starts_again(
    serve: Any, apart: Any, answer: Any
) -> None:
    server = serve(lambda call: Act(latency_s=30.0 if "hang" in call.user else 0.0))
    judge = apart(server, max_cost=1.0)
    assert judge.submit(answer("It is 42.")).result().value == 7 / 9
    spent = judge.state()["spent_usd"]
    hanging = judge.submit(answer("They hang it at 42."))
    wait_until(lambda: server.in_flight)
    (child,) = children()
    os.kill(child.pid, signal.SIGKILL)
    unscored = hanging.result(timeout=10)
    assert unscored.value is None
    assert unscored.error == "judge: the judge's process was killed by SIGKILL"
    assert judge.can_recover(unscored)
    assert judge.metrics() == {}
    assert judge.trouble() is None
    assert judge.state()["spent_usd"] == spent
    assert judge.submit(answer("It is 43.")).result(timeout=30).value == 7 / 9
    # the call that nobody knows the price of counts at the most it can cost
    assert judge.state()["spent_usd"] > 2.5 * spent


def test_a_spent_budget_pauses_with_the_words_of_the_judge(
    serve: Any, apart: Any, answer: Any
) -> None:
    judge = apart(serve(Act()), max_cost=0.01)
    judge.load_state({"spent_usd": 0.0099999})
    with pytest.raises(Paused, match="--max_judge_cost"):
        judge.submit(answer("It is 42.")).result(timeout=30)


def test_closing_gives_up_what_is_asked_and_ends_the_process(
    serve: Any, apart: Any, answer: Any
) -> None:
    server = serve(Act(latency_s=30.0))
    judge = apart(server)
    asked = [judge.submit(answer(f"It is {index}.")) for index in range(3)]
    wait_until(lambda: server.in_flight)
    judge.close()
    assert not children()
    wait(asked, timeout=5)
    for future in asked:
        with pytest.raises(CancelledError):
            future.result()
    with pytest.raises(RuntimeError, match="closed"):
        judge.submit(answer("It is 42."))


def test_a_judge_that_cannot_be_made_says_why(
    serve: Any, apart: Any, answer: Any, tmp_path: Path
) -> None:
    judge = apart(serve(Act()), prompt=str(tmp_path / "no_such_template.md"))
    with pytest.raises(RewardError, match="no_such_template"):
        judge.submit(answer("It is 42.")).result(timeout=30)


def test_the_key_is_in_no_argument_and_no_environment(
    serve: Any, apart: Any, answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    judge = apart(serve(Act()))
    assert judge.submit(answer("It is 42.")).result(timeout=30).value == 7 / 9
    (child,) = children()
    assert KEY not in " ".join([*child.cmdline(), *child.environ().values()])
