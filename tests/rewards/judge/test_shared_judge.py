"""One judge for all ranks: what another rank asks, what it is told, and who is let in."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client

import pytest
from held_scorer import Held
from waiting import wait_until

from rlcli.errors import Paused, RankLostError
from rlcli.rewards.judge.shared import JudgeServer, RemoteJudge
from rlcli.types import Prompt, Reward, Rollout

KEY = b"k" * 32
PROMPT = Prompt(id="a:1", messages=({"role": "user", "content": "1 + 1"},), token_ids=(3, 4))
STRANGE = Prompt(id="a:1", messages=({"role": "user", "content": "2 + 2"},), token_ids=(3,))


class Judge(Held):
    """Keeps what it is asked."""

    def __init__(self) -> None:
        super().__init__(is_service=True)
        self.asked: list[Rollout] = []

    def submit(self, rollout: Rollout, *, before: Reward | None = None) -> Future[Reward]:
        self.asked.append(rollout)
        return super().submit(rollout)


@pytest.fixture(params=["127.0.0.1", "::1"])
def host(request: pytest.FixtureRequest) -> str:
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    try:
        socket.create_server((request.param, 0), family=family).close()
    except OSError as error:
        pytest.skip(f"{request.param}: {error.strerror}")
    return request.param


@pytest.fixture
def judge() -> Judge:
    return Judge()


@pytest.fixture
def server(judge: Judge, host: str) -> Iterator[JudgeServer]:
    made = JudgeServer(judge, host, KEY, [PROMPT])
    yield made
    made.close()


def answer(text: str, prompt: Prompt = PROMPT) -> Rollout:
    return Rollout(
        prompt=prompt,
        text=text,
        token_ids=(5,) * 9,
        logprobs=(-1.0,) * 9,
        finish_reason="stop",
        policy_version=3,
    )


def test_a_rank_is_told_what_the_judge_says(server: JudgeServer, judge: Judge) -> None:
    """In any order, and what ends the run too; tokens and known prompts are not sent."""
    rank = RemoteJudge(server.address, [PROMPT])
    futures = [rank.submit(answer(text, PROMPT)) for text in ("a", "b")]
    futures.append(rank.submit(answer("c", STRANGE)))
    wait_until(lambda: len(judge.asked) == 3)
    assert [one.text for one in judge.asked] == ["a", "b", "c"]
    assert judge.asked[0].prompt is PROMPT
    assert judge.asked[2].prompt.messages == STRANGE.messages
    assert not any(one.token_ids for one in judge.asked)
    judge.futures[2].set_exception(Paused("the budget is spent"))
    judge.futures[1].set_result(Reward(value=0.5, parts={"judge": 0.5}, reason="so"))
    judge.futures[0].set_result(Reward(value=None, error="judge: busy", is_outage=True))
    assert futures[0].result(60).is_outage
    assert futures[1].result(60) == Reward(value=0.5, parts={"judge": 0.5}, reason="so")
    with pytest.raises(Paused, match="the budget is spent"):
        futures[2].result(60)
    rank.close()


def test_a_judge_that_cannot_begin_says_so(server: JudgeServer, judge: Judge) -> None:
    rank = RemoteJudge(server.address, [PROMPT])
    judge.close()
    with pytest.raises(RuntimeError, match="closed"):
        rank.submit(answer("a")).result(60)
    rank.close()


def test_what_is_being_scored_when_a_rank_closes_is_given_up(server: JudgeServer) -> None:
    rank = RemoteJudge(server.address, [PROMPT])
    future = rank.submit(answer("a"))
    rank.close()
    with pytest.raises(CancelledError):
        future.result(60)
    with pytest.raises(RuntimeError, match="closed"):
        rank.submit(answer("b"))


def test_a_rank_0_that_is_gone_is_told(judge: Judge) -> None:
    server = JudgeServer(judge, "127.0.0.1", KEY, [])
    address = server.address
    rank = RemoteJudge(address, [])
    before = rank.submit(answer("a"))
    wait_until(lambda: bool(judge.asked))
    server.close()
    for future in (before, rank.submit(answer("b"))):
        with pytest.raises(RankLostError, match="rank 0 is gone"):
            future.result(60)
    rank.close()
    with pytest.raises(RankLostError, match="rank 0 does not answer at"):
        RemoteJudge(address, [])


def test_a_stranger_is_not_let_in_and_keeps_nobody_waiting(judge: Judge) -> None:
    server = JudgeServer(judge, "127.0.0.1", KEY, [PROMPT])
    address = server.address
    silent = socket.create_connection((address.host, address.port))
    with pytest.raises((AuthenticationError, EOFError, OSError)):
        Client((address.host, address.port), authkey=b"x" * 32)
    rank = RemoteJudge(address, [PROMPT])
    rank.submit(answer("a"))
    wait_until(lambda: bool(judge.asked))
    rank.close()
    silent.close()
    server.close()
