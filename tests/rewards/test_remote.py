"""A score server over real HTTP, and everything that can come back instead of scores."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from rlcli.config.rewards import RewardConfig
from rlcli.errors import RewardError
from rlcli.rewards import build_scorer, check_reward, needs_model, probe_reward
from rlcli.rewards.base import score_all
from rlcli.rewards.remote import RemoteModel, check_url
from rlcli.types import Reward

Answer = Callable[[Any, dict[str, Any]], None]


def lengths(handler: Any, asked: dict[str, Any]) -> None:
    """Scores each pair by the lengths of its texts, in any order."""
    pairs = list(zip(asked["text_1"], asked["text_2"], strict=True))
    data = [{"index": i, "score": len(a) - len(b)} for i, (a, b) in enumerate(pairs)]
    send(handler, json.dumps({"object": "list", "data": data[::-1]}).encode())


def send(handler: Any, body: bytes, *, status: int = 200) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """server(answer) is the address of a score server that answers so; .asked counts."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    servers: list[ThreadingHTTPServer] = []

    def start(answer: Answer) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                answer(self, asked)

            def log_message(self, *_: Any) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/score"

    yield start
    for made in servers:
        made.shutdown()
        made.server_close()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlcli.rewards.remote.PAUSES_S", (0.01, 0.01))


def chat_lengths(handler: Any, asked: dict[str, Any]) -> None:
    """Scores a conversation by the lengths of its turns, as a server with raw scores."""
    assert asked["use_activation"] is False
    *asking, answer = asked["messages"]
    assert answer["role"] == "assistant"
    score = sum(len(m["content"]) for m in asking) - len(answer["content"])
    data = [{"index": 0, "label": "LABEL_0", "probs": [score], "num_classes": 1}]
    send(handler, json.dumps({"object": "list", "data": data}).encode())


def test_a_run_scores_with_a_server_by_its_address(server: Any, rollout: Any) -> None:
    config = RewardConfig(model=server(lengths))
    assert not needs_model(config)
    assert check_reward(config, {"no rule knows it"}) == []
    assert probe_reward(config) == []
    scorer = build_scorer(config)
    try:
        rewards = score_all(scorer, [rollout("x" * n) for n in range(100)])
        assert [reward.value for reward in rewards] == [-float(n) for n in range(100)]
        assert scorer.can_recover(Reward(value=None))
    finally:
        scorer.close()


def test_a_classify_server_is_asked_for_one_conversation_a_call(server: Any, rollout: Any) -> None:
    config = RewardConfig(model=server(chat_lengths).replace("/score", "/classify"))
    assert check_reward(config, {"no rule knows it"}) == []
    assert probe_reward(config) == []
    scorer = build_scorer(config)
    try:
        rewards = score_all(scorer, [rollout("x" * n) for n in range(6)])
        assert [reward.value for reward in rewards] == [-float(n) for n in range(6)]
    finally:
        scorer.close()


def test_two_classes_are_no_score(server: Any, rollout: Any) -> None:
    def answer(handler: Any, asked: dict[str, Any]) -> None:
        data = [{"index": 0, "probs": [0.25, 0.75], "num_classes": 2}]
        send(handler, json.dumps({"data": data}).encode())

    address = server(answer).replace("/score", "/classify")
    (reward,) = RemoteModel(address, timeout_s=60).rate([rollout("x")])
    assert reward.value is None
    assert 'expected {"data": [{"index", "probs"}]} for 1 conversations' in (reward.error or "")


def drip(handler: Any, asked: dict[str, Any]) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    with suppress(OSError):
        while True:
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)


def cut(handler: Any, asked: dict[str, Any]) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"data"')


def drip_an_error(handler: Any, asked: dict[str, Any]) -> None:
    handler.send_response(503)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"busy")
    handler.wfile.flush()
    handler.connection.recv(1)  # until the other side leaves


def replies(body: str, status: int = 200) -> Answer:
    return lambda handler, asked: send(handler, body.encode(), status=status)


@pytest.mark.parametrize(
    ("answer", "error", "tries"),
    [
        (cut, "no connection: IncompleteRead", 3),
        (replies("busy", 503), "HTTP 503 Service Unavailable: busy", 3),
        (replies("slow down", 429), "HTTP 429 Too Many Requests: slow down", 3),
        (replies("no such model", 404), "HTTP 404 Not Found: no such model", 1),
        (replies("<html>"), 'expected {"data": [{"index", "score"}]} for 2 conversations', 1),
        (replies('{"data": [{"index": 0, "score": 1}]}'), "for 2 conversations, got", 1),
        (replies('{"error": "x"}'), "for 2 conversations, got", 1),
        (
            replies('{"data": [{"index": 0, "score": NaN}, {"index": 1, "score": true}]}'),
            "expected a finite number",
            1,
        ),
        (
            replies(f'{{"data": [{{"index": 0, "score": 1{"0" * 400}}}, {{"index": 1}}]}}'),
            "for 2 conversations, got",
            1,
        ),
        (
            replies(
                f'{{"data": [{{"index": 0, "score": 1{"0" * 400}}}, '
                f'{{"index": 1, "score": -1{"0" * 400}}}]}}'
            ),
            "expected a finite number",
            1,
        ),
        (replies('{"data": [{"index": Infinity, "score": 1}]}'), "for 2 conversations, got", 1),
    ],
)
def test_what_is_no_score_leaves_the_batch_unscored_with_the_reason(
    server: Any, rollout: Any, answer: Answer, error: str, tries: int
) -> None:
    asked: list[Any] = []
    rewards = rate(server, answer, asked, [rollout("a"), rollout("b")], timeout_s=60.0)
    assert [reward.value for reward in rewards] == [None, None]
    assert all(error in (reward.error or "") for reward in rewards)
    assert len(asked) == tries


def rate(
    server: Any, answer: Answer, asked: list[Any], rollouts: list[Any], *, timeout_s: float
) -> list[Reward]:
    """Rewards by a server that answers so; `asked` gets what it was asked."""

    def counted(handler: Any, body: dict[str, Any]) -> None:
        asked.append(body)
        answer(handler, body)

    return RemoteModel(server(counted), timeout_s=timeout_s).rate(rollouts)


def test_an_answer_that_never_ends_is_given_up_when_its_time_is_over(
    server: Any, rollout: Any
) -> None:
    asked: list[Any] = []
    (reward,) = rate(server, drip, asked, [rollout("a")], timeout_s=0.3)
    error = "no answer within 0.3 s (reward.timeout_s)"
    assert reward == Reward(value=None, error=error, is_outage=True)
    assert len(asked) == 3


def test_an_error_that_never_ends_is_told_by_its_beginning(server: Any, rollout: Any) -> None:
    # a busy machine may need longer for the beginning
    for timeout_s in (0.3, 3.0, 30.0):
        asked: list[Any] = []
        (reward,) = rate(server, drip_an_error, asked, [rollout("a")], timeout_s=timeout_s)
        if (reward.error or "").endswith("busy"):
            break
    assert reward == Reward(value=None, error="HTTP 503 Service Unavailable: busy", is_outage=True)
    assert len(asked) == 3


def test_a_server_that_comes_back_is_asked_again(server: Any, rollout: Any) -> None:
    asked: list[Any] = []

    def second_time(handler: Any, body: dict[str, Any]) -> None:
        asked.append(body)
        if len(asked) == 1:
            send(handler, b"starting", status=503)
        else:
            lengths(handler, body)

    (reward,) = RemoteModel(server(second_time), timeout_s=60.0).rate([rollout("abc")])
    assert reward.value == -3.0


def test_an_absent_server_is_found_by_the_probe_before_training() -> None:
    config = RewardConfig(model="http://127.0.0.1:9/score")
    with pytest.raises(RewardError, match="does not answer: no connection: ConnectionRefused"):
        probe_reward(config)


@pytest.mark.parametrize(
    "url", ["http://host", "http://host:x/score", "https:///score", "http://h:1/rank"]
)
def test_an_address_that_is_no_score_server_is_refused(url: str) -> None:
    with pytest.raises(
        RewardError, match=r"http://HOST:PORT/classify \(chats\) or http://HOST:PORT/score"
    ):
        check_url(url)


def test_closing_ends_the_tries(server: Any, rollout: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlcli.rewards.remote.PAUSES_S", (600.0, 600.0))
    remote = RemoteModel(server(replies("busy", 503)), timeout_s=60.0)
    threading.Timer(0.1, remote.close).start()
    begun = time.monotonic()
    assert remote.rate([rollout("a")])[0].value is None
    assert time.monotonic() - begun < 100.0
