"""A run's policy or a model behind OpenAI's API, for as long as a program wants it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from queue import Empty, SimpleQueue

from rlcli.config.resolved import with_values
from rlcli.envs.agent_run import chat_texts, row_limits
from rlcli.envs.answering import answer
from rlcli.envs.chat import MODEL, ApiError
from rlcli.envs.endpoint import Endpoint, WaitingCall
from rlcli.envs.recording import Recorder
from rlcli.rollout.base import SamplingParams
from rlcli.tools.evaluation.measuring import build_policy
from rlcli.tools.evaluation.planning import Request, plan_policy
from rlcli.types import Turn

WINDOW_S = 0.005
"""Seconds that a call waits for others, to be sampled with them."""
UNLIMITED = 65_536
"""Turns of an episode, and tokens of a message, where nothing is trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedConversation:
    """Tokens of a conversation: `prompt_ids | token_ids`, mask 1 on those that the policy wrote.

    logprobs: of logits / temperature; 0 where mask is 0.
    """

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    mask: tuple[int, ...]
    logprobs: tuple[float, ...]


class ServedEpisode:
    """Calls with one API key, recorded token by token."""

    def __init__(self, api_key: str, recorder: Recorder) -> None:
        self.api_key, self._recorder = api_key, recorder

    @property
    def turns(self) -> list[Turn]:
        """The turns so far, in the order in which they were sampled."""
        return list(self._recorder.turns)

    @property
    def conversations(self) -> list[RecordedConversation]:
        """The conversations so far, that of the last call first."""
        return [
            RecordedConversation(
                prompt_ids=row.prompt_ids,
                token_ids=tuple(row.ids),
                mask=tuple(row.mask),
                logprobs=tuple(row.logprobs),
            )
            for row in self._recorder.rows()
        ]


class PolicyServer:
    """A model behind OpenAI's API on loopback. Use `rlcli.serve`.

    base_url, api_key: what an OpenAI client needs. model: the model's name there. Each call with
    api_key is an episode of its own, and is not recorded.
    """

    def __init__(self, request: Request) -> None:
        plan = plan_policy(request, Path.cwd())
        self.notes = plan.notes
        self._sampler = build_policy(plan)
        unlimited = {"env.max_turns": UNLIMITED, "env.max_reply_tokens": UNLIMITED}
        config = with_values(plan.config, unlimited)
        self._texts, self._limits = chat_texts(config, self._sampler), row_limits(config)
        self._params = SamplingParams(
            n=1,
            max_tokens=config.data.max_response_tokens,
            temperature=plan.temperature,
            stop=tuple(config.rollout.stop),
        )
        self._seed = config.run.seed
        self._calls: SimpleQueue[WaitingCall | None] = SimpleQueue()
        self._recorders: dict[str, Recorder] = {}
        total = self._limits.max_prompt_tokens + self._limits.max_row_tokens
        self._endpoint = Endpoint(self._calls, max_tokens=total)
        self._thread = threading.Thread(target=self._serve, daemon=True, name="policy")
        self.base_url, self.model = self._endpoint.url, MODEL
        self.api_key = self._endpoint.open()
        self._numbers, self._single_calls = count(1), count(1)
        self._thread.start()

    @contextmanager
    def episode(self, *, place: int | None = None) -> Iterator[ServedEpisode]:
        """An API key of its own, whose calls are recorded together; refused afterwards.

        place: number on which the draws depend; None: the next one.
        """
        key = self._endpoint.open()
        recorder = self._recorders[key] = self._recorder(
            next(self._numbers) if place is None else place
        )
        try:
            yield ServedEpisode(key, recorder)
        finally:
            self._endpoint.close_key(key)
            self._recorders.pop(key, None)

    def close(self) -> None:
        """Stop serving."""
        self._calls.put(None)
        self._thread.join()
        self._endpoint.close()
        self._sampler.close()

    def _recorder(self, place: int) -> Recorder:
        return Recorder(self._texts, self._limits, place=place)

    def _recorder_of(self, call: WaitingCall) -> Recorder | None:
        """None: the call's episode is over."""
        if call.key == self.api_key:  # places of episodes are not negative
            return self._recorder(-next(self._single_calls))
        return self._recorders.get(call.key)

    def _serve(self) -> None:
        while (first := self._calls.get()) is not None:
            calls = [first]
            with suppress(Empty):
                while (call := self._calls.get(timeout=WINDOW_S)) is not None:
                    calls.append(call)
                return
            self._answer(calls)

    def _answer(self, calls: list[WaitingCall]) -> None:
        found = [(call, self._recorder_of(call)) for call in calls]
        known = [(call, recorder) for call, recorder in found if recorder is not None]
        try:
            answer(known, {}, self._sampler, self._params, seed=self._seed)
        except Exception as error:  # goes to the callers: the server must outlive one bad call
            for call in calls:
                # clients send a call with status 500 again
                failure = ApiError(f"the model could not be sampled: {error}")
                with suppress(Exception):  # it may be answered already
                    call.reply.set_exception(failure)
