"""The judge in a process of its own: the same rewards, and an end that loses nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from judge_server import ENDLESS_S, Act, Call, JudgeServer
from small_runs import in_children
from waiting import wait_until

from rlcli.errors import Paused, RewardError
from rlcli.rewards.base import score_all
from rlcli.rewards.judge import JudgeProcess, process_client
from rlcli.rewards.judge import process as apart_module

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
    found: list[psutil.Process] = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            found += (
                [child] if "rlcli.rewards.judge.process_worker" in " ".join(child.cmdline()) else []
            )
    return found


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
    serve: Any, apart: Any, answer: Any, tmp_path: Path
) -> None:
    server = serve(lambda call: Act(latency_s=ENDLESS_S if "hang" in call.user else 0.0))
    judge = apart(server, max_cost=1.0)
    assert judge.submit(answer("It is 42.")).result().value == 7 / 9
    spent = judge.state()["spent_usd"]
    hanging = judge.submit(answer("They hang it at 42."))
    wait_until(lambda: server.in_flight)
    (child,) = children()
    os.kill(child.pid, signal.SIGKILL)
    unscored = hanging.result(timeout=60)
    assert unscored.value is None
    words = f"the judge's process was killed by SIGKILL (see {tmp_path / 'reward.log'})"
    assert unscored.error == f"judge: {words}"
    assert judge.can_recover(unscored)
    assert judge.metrics() == {}
    assert judge.state()["spent_usd"] == spent
    assert judge.submit(answer("It is 43.")).result(timeout=60).value == 7 / 9
    assert judge.trouble() == f"{words}; it is started again."
    assert judge.trouble() is None
    assert judge.metrics()["judge/restarts"] == 1.0
    # the call that nobody knows the price of counts at the most it can cost
    assert judge.state()["spent_usd"] > 2.5 * spent


def test_a_spent_budget_pauses_with_the_words_of_the_judge(
    serve: Any, apart: Any, answer: Any
) -> None:
    judge = apart(serve(Act()), max_cost=0.01)
    judge.load_state({"spent_usd": 0.0099999})
    with pytest.raises(Paused, match="--max_judge_cost"):
        judge.submit(answer("It is 42.")).result(timeout=60)


def test_closing_gives_up_what_is_asked_and_ends_the_process(
    serve: Any, apart: Any, answer: Any
) -> None:
    server = serve(Act(latency_s=ENDLESS_S))
    judge = apart(server)
    asked = [judge.submit(answer(f"It is {index}.")) for index in range(3)]
    wait_until(lambda: server.in_flight)
    judge.close()
    assert not children()
    for future in asked:
        with pytest.raises(CancelledError):
            future.result(timeout=60)
    with pytest.raises(RuntimeError, match="closed"):
        judge.submit(answer("It is 42."))


def test_a_judge_that_cannot_be_made_says_why(serve: Any, apart: Any, tmp_path: Path) -> None:
    with pytest.raises(RewardError, match="no_such_template"):
        apart(serve(Act()), prompt=str(tmp_path / "no_such_template.md"))


def test_the_key_is_in_no_argument_and_no_environment(
    serve: Any, apart: Any, answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    judge = apart(serve(Act()))
    assert judge.submit(answer("It is 42.")).result(timeout=60).value == 7 / 9
    (child,) = children()
    assert KEY not in " ".join([*child.cmdline(), *child.environ().values()])


def test_a_process_that_is_stopped_keeps_nobody_and_is_said_once(
    serve: Any, apart: Any, answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pipe is full: neither a submission, nor a question, nor the end waits for it."""
    monkeypatch.setattr(apart_module, "ANSWER_S", 0.3)
    monkeypatch.setattr(apart_module, "LAST_ANSWER_S", 0.1)
    monkeypatch.setattr(process_client, "PATIENCE_S", 0.3)
    judge = apart(serve(Act()))
    judge.submit(answer("It is 42.")).result(timeout=60)
    (child,) = children()
    child.suspend()
    asked = [judge.submit(answer(f"{'It is so. ' * 5000} {index}")) for index in range(40)]
    assert "does not answer" in judge.trouble()
    assert judge.trouble() is None
    assert judge.metrics() == {}
    monkeypatch.setattr(apart_module, "STUCK_S", 0.0)
    assert judge.trouble() is None
    unscored = asked[0].result(timeout=60)
    assert unscored.value is None
    assert "SIGKILL" in (unscored.error or "")
    assert judge.submit(answer("It is 43.")).result(timeout=60).value == 7 / 9
    judge.close()
    assert not children()


def test_a_process_that_never_starts_is_an_error_that_names_its_log(
    serve: Any, apart: Any, answer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlcli.rewards.process.sys.executable", str(dying(tmp_path)))
    judge = apart(serve(Act()))
    ends = r"exited with status 3 \(see .*reward.log\), 3 times"
    with pytest.raises(RewardError, match=ends):
        # the third start may be seen to fail by its own call or by the next
        [judge.submit(answer("It is 42.")).result(timeout=60) for _ in range(4)]
    assert "no such thing" in (tmp_path / "reward.log").read_text()


def dying(folder: Path) -> Path:
    """A program that ends as it starts."""
    program = folder / "dying"
    program.write_text("#!/bin/sh\necho no such thing >&2\nexit 3\n")
    program.chmod(0o755)
    return program


def test_what_ends_a_group_of_processes_does_not_end_the_judge(
    serve: Any, apart: Any, answer: Any
) -> None:
    judge = apart(serve(Act()))
    judge.submit(answer("It is 42.")).result(timeout=60)
    (child,) = children()
    child.send_signal(signal.SIGTERM)
    child.send_signal(signal.SIGINT)
    assert judge.submit(answer("It is 43.")).result(timeout=60).value == 7 / 9
    assert judge.metrics().get("judge/restarts") is None


def test_a_bug_in_scoring_is_told_though_the_log_is_full(
    serve: Any, settings: Any, answer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "from rlcli.rewards.judge import scorer\nscorer.reward_of = None\n"
    in_children(tmp_path, monkeypatch, code)
    config, env = settings(serve(Act())), {"OPENAI_API_KEY": KEY}
    full = Path("/dev/full")
    judge = JudgeProcess(config, env=env, lang="en", run_dir=tmp_path, log=full)
    try:
        with pytest.raises(RuntimeError, match="TypeError"):
            judge.submit(answer("It is 42.")).result(timeout=60)
    finally:
        judge.close()


def test_a_template_that_changes_grades_as_it_did_at_the_start(
    serve: Any, apart: Any, answer: Any, tmp_path: Path
) -> None:
    template = tmp_path / "mine.txt"
    template.write_text("First wording. {response}")
    server = serve(Act())
    judge = apart(server, prompt=str(template))
    judge.submit(answer("It is 42.")).result(timeout=60)
    template.unlink()
    (child,) = children()
    child.kill()
    wait_until(lambda: not children())
    judge.submit(answer("It is 43.")).result(timeout=60)
    judge.submit(answer("It is 44.")).result(timeout=60)
    assert all("First wording." in call.user for call in server.calls)
