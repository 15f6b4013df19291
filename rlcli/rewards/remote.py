"""A reward model behind an address, in the words of one of two APIs of vLLM.

http(s)://host/score, for models that read pairs. Asked: {"text_1": [prompt, ...], "text_2":
[response, ...]}, pair by pair. Answered: {"data": [{"index": 0, "score": 1.25}, ...]}.

http(s)://host/classify, for models that read a chat, by the server's chat template. Asked:
{"messages": [...], "use_activation": false}. Answered: {"data": [{"index": 0, "probs": [1.25]}]}.
"""

from __future__ import annotations

import http.client
import json
import math
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from rlcli.errors import RewardError, RewardServiceError
from rlcli.rewards.chat_roles import with_known_roles
from rlcli.types import Message, Reward, Rollout

Chat = tuple[Sequence[Message], str]
"""(the prompt's messages, the response)."""

PAUSES_S = (0.5, 2.0)
"""Waits between the tries of one batch."""
CHUNK_BYTES = 1 << 16
SAID_BYTES = 300
MAX_ANSWER_BYTES = 16 << 20
PAIRS_PER_CALL = 32
PAIR_THREADS = 4
CHAT_THREADS = 32
"""A call to /classify holds one conversation."""


def is_url(model: str) -> bool:
    """Whether `reward.model` is an address rather than a folder or a hub name."""
    return model.startswith(("http://", "https://"))


def check_url(url: str) -> None:
    """Nothing, when `url` can be asked. Raises: RewardError."""
    parts = urllib.parse.urlsplit(url)
    try:
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError:
        port_is_valid = False
    has_api = parts.path.rstrip("/").endswith(("/score", "/classify"))
    if not parts.hostname or not port_is_valid or not has_api:
        raise RewardError(
            f"reward.model={url} is no address of a score server.\n"
            "Expected http://HOST:PORT/classify (chats) or http://HOST:PORT/score (pairs), which "
            "are APIs of vLLM (see docs/rewards.md)."
        )


class _Failed(Exception):
    """A batch without an answer. `is_transient`: another try may get one."""

    def __init__(self, message: str, *, is_transient: bool) -> None:
        super().__init__(message)
        self.is_transient = is_transient


class RemoteModel:
    """A `BatchRater` that posts to `url`. timeout_s: of one try, from connecting to the end."""

    is_service = True

    def __init__(self, url: str, *, timeout_s: float) -> None:
        self._url = url
        self._reads_chats = urllib.parse.urlsplit(url).path.rstrip("/").endswith("/classify")
        self.max_batch = 1 if self._reads_chats else PAIRS_PER_CALL
        self.num_threads = CHAT_THREADS if self._reads_chats else PAIR_THREADS
        self._timeout_s = timeout_s
        self._closing = threading.Event()

    def probe(self) -> None:
        """Nothing, when the server scores a pair.

        Raises: RewardServiceError where it may do so later, RewardError where it never will.
        """
        try:
            self._ask([([{"role": "user", "content": "What is 1 + 1?"}], "2")])
        except _Failed as failure:
            kind = RewardServiceError if failure.is_transient else RewardError
            raise kind(
                f"the reward model at {self._url} does not answer: {failure}\n"
                "Start it (vllm serve MODEL), or mend reward.model."
            ) from failure

    def rate(self, rollouts: Sequence[Rollout]) -> list[Reward]:
        """Rewards in the order of `rollouts`."""
        chats = [(with_known_roles(one.prompt.messages), one.text) for one in rollouts]
        for pause_s in (*PAUSES_S, None):
            try:
                scores = self._ask(chats)
                break
            except _Failed as failure:
                is_over = pause_s is None or not failure.is_transient
                if is_over or self._closing.wait(pause_s):
                    lost = Reward(value=None, error=str(failure), is_outage=failure.is_transient)
                    return [lost for _ in rollouts]
        else:
            raise AssertionError("the last try returns")
        return [_reward(score) for score in scores]

    def close(self) -> None:
        """Try nothing again."""
        self._closing.set()

    def _ask(self, chats: Sequence[Chat]) -> list[Any]:
        body = json.dumps(_chat(*chats[0]) if self._reads_chats else _pairs(chats)).encode()
        request = urllib.request.Request(
            self._url, data=body, headers={"Content-Type": "application/json"}, method="POST"
        )
        deadline = time.monotonic() + self._timeout_s
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_s) as answer:
                text = _read(answer, deadline=deadline)
        except urllib.error.HTTPError as error:
            said = _said(error, deadline=deadline)
            is_transient = error.code >= 500 or error.code in (408, 429)
            message = f"HTTP {error.code} {error.reason}: {said}"
            raise _Failed(message, is_transient=is_transient) from error
        except (OSError, http.client.HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(reason, TimeoutError):
                message = f"no answer within {self._timeout_s:g} s (reward.timeout_s)"
            else:
                message = f"no connection: {type(reason).__name__} {reason}"
            raise _Failed(message, is_transient=True) from error
        return _scores(text, count=len(chats), field="probs" if self._reads_chats else "score")


def _pairs(chats: Sequence[Chat]) -> dict[str, Any]:
    prompts = ["\n\n".join(m["content"] for m in messages) for messages, _ in chats]
    return {"text_1": prompts, "text_2": [response for _, response in chats]}


def _chat(messages: Sequence[Message], response: str) -> dict[str, Any]:
    """One conversation. Without use_activation the answer would be the score's sigmoid."""
    answer = {"role": "assistant", "content": response}
    return {"messages": [*map(dict, messages), answer], "use_activation": False}


def _said(error: urllib.error.HTTPError, *, deadline: float) -> str:
    """The beginning of an error's text, as far as it comes in time."""
    said = b""
    body: Any = error.fp
    with error, suppress(OSError, http.client.HTTPException):
        while len(said) < SAID_BYTES and time.monotonic() < deadline:
            if not (chunk := body.read1(SAID_BYTES)):
                break
            said += chunk
    return said[:SAID_BYTES].decode(errors="replace").strip()


def _read(answer: http.client.HTTPResponse, *, deadline: float) -> bytes:
    """The whole body. Raises: TimeoutError when the deadline passes, however it drips."""
    chunks: list[bytes] = []
    size = 0
    while chunk := answer.read1(CHUNK_BYTES):
        chunks.append(chunk)
        size += len(chunk)
        if time.monotonic() > deadline:
            raise TimeoutError
        if size > MAX_ANSWER_BYTES:
            raise _Failed(f"an answer of more than {MAX_ANSWER_BYTES:,} bytes", is_transient=False)
    if answer.length:  # read1 is silent about a body that ends early
        raise http.client.IncompleteRead(b"", answer.length)
    return b"".join(chunks)


def _scores(text: bytes, *, count: int, field: str) -> list[Any]:
    """The scores in the order asked. Raises: _Failed when they are not all there."""
    try:
        answer = json.loads(text)
        found = {int(item["index"]): item[field] for item in answer["data"]}
        if field == "probs":
            found = {index: score for index, (score,) in found.items()}
        return [found[index] for index in range(count)]
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        shown = text[:120].decode(errors="replace")
        wanted = f'{{"data": [{{"index", "{field}"}}]}}'
        message = f"expected {wanted} for {count} conversations, got {shown!r}"
        raise _Failed(message, is_transient=False) from error


def _reward(score: Any) -> Reward:
    is_number = isinstance(score, (int, float)) and not isinstance(score, bool)
    with suppress(OverflowError):  # a whole number past what a float holds
        if is_number and math.isfinite(score):
            return Reward(value=float(score))
    return Reward(value=None, error=f"the server's score is {score!r}, expected a finite number")
