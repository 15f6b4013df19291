"""Episodes from a sampler of single turns: turn by turn, on token ids alone.

A row is `prompt | model ids | environment ids | model ids ...`. All rows take their turns together,
so that a batch, and with it every last bit, does not depend on how fast an environment answers;
environments work while other rows are still being sampled.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count

from torch import Tensor

from rlcli.envs.calls import Calls, ToolCall, problem_of
from rlcli.envs.dialogue import Dialogue
from rlcli.envs.episode import EnvFacts, EnvReply, Episode, EpisodeFailedError
from rlcli.envs.process import EnvPool
from rlcli.envs.tasks import OPENING, SEED, TASK
from rlcli.rollout.base import OnFinish, SamplingParams
from rlcli.rollout.native import NativeSampler
from rlcli.types import FinishReason, Message, Prompt, Reward, Rollout, Turn

MAX_PREFILL_TOKENS = 65_536
"""Tokens of the rows that are read again side by side at the start of a turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeLimits:
    """Bounds of an episode. max_turn_tokens: None: only the row is bounded."""

    max_turns: int
    max_turn_tokens: int | None


class EpisodeSampler:
    """A `Sampler` whose rollouts are episodes in the environment of `pool`."""

    def __init__(
        self,
        sampler: NativeSampler,
        pool: EnvPool,
        facts: EnvFacts,
        dialogue: Dialogue,
        limits: EpisodeLimits,
    ) -> None:
        self.sampler, self.pool, self.facts = sampler, pool, facts
        self.dialogue, self.limits = dialogue, limits
        self.is_exact = sampler.is_exact
        self._threads = ThreadPoolExecutor(pool.spec.concurrency, thread_name_prefix="episode")
        self._numbers = count()

    @property
    def max_num_seqs(self) -> int:
        """Rows that are sampled side by side."""
        return self.sampler.max_num_seqs

    def load_weights(self, weights: Iterator[tuple[str, Tensor]], *, version: int) -> None:
        """See Sampler."""
        self.sampler.load_weights(weights, version=version)

    def sleep(self) -> None:
        """See Sampler."""
        self.sampler.sleep()

    def close(self) -> None:
        """End the environments, then the sampler."""
        self.pool.close()
        self._threads.shutdown(cancel_futures=True)
        self.sampler.close()

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        seed: int,
        prompt_indices: Sequence[int] | None = None,
        on_finish: OnFinish | None = None,
    ) -> list[Rollout]:
        """params.n episodes per prompt, prompts in order.

        What is drawn depends on the seed, the prompt's place, the row and the turn alone.
        """
        prompt_indices = range(len(prompts)) if prompt_indices is None else prompt_indices
        rows = [
            _Row(self, prompt, params.max_tokens, place * params.n + i)
            for prompt, place in zip(prompts, prompt_indices, strict=True)
            for i in range(params.n)
        ]
        for row in rows:
            row.begin(self._threads)
        out: list[Rollout | None] = [None] * len(rows)
        live = list(range(len(rows)))
        for turn in range(self.limits.max_turns):
            self._take_turn(rows, live, turn, params, seed, prompts, prompt_indices)
            ended = [i for i in live if rows[i].settle(is_last=turn + 1 == self.limits.max_turns)]
            scores = {i: self._threads.submit(rows[i].end) for i in ended}
            for i in ended:
                out[i] = done = rows[i].rollout(scores[i].result())
                if on_finish is not None:
                    on_finish(i, done)
            live = [i for i in live if i not in scores]
            if not live:
                break
        return [each for each in out if each is not None]

    def _take_turn(
        self,
        rows: Sequence[_Row],
        live: Sequence[int],
        turn: int,
        params: SamplingParams,
        seed: int,
        prompts: Sequence[Prompt],
        prompt_indices: Sequence[int],
    ) -> None:
        """Sample one turn of the live rows; each environment answers meanwhile."""
        width = min(params.max_tokens, self.limits.max_turn_tokens or params.max_tokens)
        if turn == 0:
            first = replace(params, max_tokens=width)
            self.sampler.generate(
                prompts,
                first,
                seed=seed,
                prompt_indices=prompt_indices,
                on_finish=lambda i, one: rows[live[i]].take(one, self._threads),
            )
            return
        own = zlib.crc32(repr((seed, "turn", turn)).encode())
        for some in _by_tokens(live, [rows[i].num_tokens for i in live]):
            self.sampler.generate(
                [rows[i].as_prompt() for i in some],
                replace(params, n=1, max_tokens=width),
                seed=own,
                prompt_indices=[rows[i].place for i in some],
                limits=[min(width, rows[i].num_left) for i in some],
                on_finish=lambda i, one, some=some: rows[some[i]].take(one, self._threads),
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What happened between two turns.

    calls: those that the model wrote. made: those that were made. num_failures: calls that could
    not be read. error: the environment failed.
    """

    reply: EnvReply
    calls: tuple[ToolCall, ...] = ()
    made: tuple[ToolCall, ...] = ()
    num_failures: int = 0
    is_over: bool = False
    error: str | None = None
    seconds: float = 0.0


class _Row:
    """One episode: its tokens so far, its turns, and its environment."""

    def __init__(self, owner: EpisodeSampler, prompt: Prompt, max_tokens: int, place: int) -> None:
        self._owner, self._prompt, self.place = owner, prompt, place
        self._max_tokens = max_tokens
        self._ids: list[int] = []
        self._logprobs: list[float] = []
        self._mask: list[int] = []
        self._turns: list[Turn] = []
        self._rewards: list[float] = []
        self._parts: dict[str, float] = {}
        self._last: Rollout | None = None
        self._reason: FinishReason = "stop"
        self._error: str | None = None
        self._answer: Future[_Answer] = Future()
        extra = prompt.extra_info
        self._episode = Episode(
            owner.pool,
            next(owner._numbers),
            extra.get(TASK, prompt.columns),
            seed=extra.get(SEED, 0),
            form=owner.facts.form,
        )
        self._begun: Future[None] = Future()

    @property
    def num_tokens(self) -> int:
        """Tokens of the row, its prompt included."""
        return len(self._prompt.token_ids) + len(self._ids)

    @property
    def num_left(self) -> int:
        """Tokens that the row has room for."""
        return self._max_tokens - len(self._ids)

    def as_prompt(self) -> Prompt:
        """The row so far, to be gone on from."""
        ids = (*self._prompt.token_ids, *self._ids)
        return replace(self._prompt, token_ids=ids)

    def begin(self, threads: ThreadPoolExecutor) -> None:
        """Have the environment begin."""
        if self._owner.facts.form == "functions":
            self._begun.set_result(None)
        else:
            self._begun = threads.submit(self._reset)

    def take(self, one: Rollout, threads: ThreadPoolExecutor) -> None:
        """A sampled turn: it joins the row, and the environment answers it."""
        prompt_ids = (*self._prompt.token_ids, *self._ids)
        self._last = one
        self._ids += one.token_ids
        self._logprobs += one.logprobs
        self._mask += [1] * len(one.token_ids)
        calls = self._owner.dialogue.parse(one.token_ids, prompt_ids)
        self._answer = threads.submit(self._answered, one, calls)

    def settle(self, *, is_last: bool) -> bool:
        """Wait for the answer and append its tokens; whether the episode is over."""
        answer, one = self._answer.result(), self._last
        assert one is not None
        assert one.finish_reason in ("stop", "length")
        reply, ids = answer.reply, ()
        if reply.reward is not None:
            self._rewards.append(reply.reward)
        self._parts.update(reply.parts)
        self._error = answer.error
        is_over = answer.is_over or answer.error is not None
        if not is_over and not is_last:
            try:
                ids = self._owner.dialogue.go_on(one.token_ids, reply.messages, answer.calls)
            except Exception as error:  # of the chat template, which may refuse what it is given
                self._error = f"the chat template cannot show the replies: {error}"
                is_over = True
        has_room = len(ids) < self.num_left
        if is_over:
            by_env = reply.is_done or self._error is not None
            self._reason = "env" if by_env else one.finish_reason
        elif is_last:
            self._reason = "turns"
        elif not has_room:
            self._reason = "length"
        else:
            self._ids += ids
            self._logprobs += [0.0] * len(ids)
            self._mask += [0] * len(ids)
        ends = is_over or is_last or not has_room
        self._turns.append(
            Turn(
                text=one.text,
                num_tokens=len(one.token_ids),
                finish_reason=one.finish_reason,
                replies=tuple(reply.messages),
                num_reply_tokens=0 if ends else len(ids),
                tool_calls=tuple(call.name for call in answer.made),
                tool_errors=reply.tool_errors,
                parse_failures=answer.num_failures,
                reward=reply.reward,
                wait_s=answer.seconds,
            )
        )
        return ends

    def end(self) -> Reward | None:
        """The environment's reward; None where the scorer gives it."""
        facts = self._owner.facts
        try:
            if self._error is not None:
                return Reward(value=None, error=self._error)
            if not facts.scores:
                return None
            if facts.form == "methods":
                value = self._episode.reward()
                error = None if value is not None else "get_reward() returned None"
                return Reward(value=value, error=error)
            value = sum(self._rewards) if self._rewards else facts.floor
            return Reward(value=value, parts=self._parts)
        except EpisodeFailedError as error:
            return Reward(value=None, error=str(error))
        finally:
            self._episode.close()

    def rollout(self, reward: Reward | None) -> Rollout:
        """The episode as a rollout."""
        assert self._last is not None
        return replace(
            self._last,
            prompt=self._prompt,
            token_ids=tuple(self._ids),
            logprobs=tuple(self._logprobs),
            mask=tuple(self._mask),
            finish_reason=self._reason,
            turns=tuple(self._turns),
            reward=reward,
        )

    def _reset(self) -> None:
        found = self._episode.begin()
        expected = self._prompt.extra_info.get(OPENING)
        if expected is not None and list(found) != list(expected):
            raise EpisodeFailedError(
                "the environment began differently with the same task and seed than at the start "
                "of the run"
            )

    def _answered(self, one: Rollout, calls: Calls) -> _Answer:
        """In a thread: what the environment answers to a turn."""
        before_s = self._episode.seconds
        try:
            self._begun.result()
            if self._owner.facts.form == "steps":
                answer = self._stepped(one, calls)
            else:
                answer = self._called(calls)
        except EpisodeFailedError as error:
            answer = _Answer(reply=EnvReply(), error=str(error))
        return replace(
            answer,
            num_failures=len(calls.failures),
            seconds=self._episode.seconds - before_s,
        )

    def _error_of(self, name: str, text: str) -> Message:
        """An error as the reply of a tool; a name that the model made up stays out of it."""
        known = {schema["function"]["name"] for schema in self._owner.facts.schemas}
        return _error(name if name in known else "", text)

    def _called(self, calls: Calls) -> _Answer:
        """The results of tools; a turn without a call ends the episode."""
        if not calls.calls and not calls.failures:
            return _Answer(reply=EnvReply(), is_over=True)
        messages: list[Message] = []
        made: list[ToolCall] = []
        errors = 0
        for call in calls.calls:
            problem = problem_of(call, self._owner.facts.schemas)
            if problem is not None:
                errors += 1
                messages.append(self._error_of(call.name, problem))
                continue
            made.append(call)
            found = self._episode.call([call])
            errors += found.tool_errors
            messages += found.messages
        messages += [_error("", failure) for failure in calls.failures]
        reply = EnvReply(messages=messages, tool_errors=errors)
        return _Answer(reply=reply, calls=tuple(calls.calls), made=tuple(made))

    def _stepped(self, one: Rollout, calls: Calls) -> _Answer:
        """Step the environment. If a call is invalid, none is made: the model gets the errors."""
        schemas = self._owner.facts.schemas
        problems = [(call.name, problem_of(call, schemas)) for call in calls.calls]
        wrong = [self._error_of(name, text) for name, text in problems if text is not None]
        wrong += [_error("", failure) for failure in calls.failures]
        if wrong:
            num_errors = len(wrong) - len(calls.failures)
            reply = EnvReply(messages=wrong, tool_errors=num_errors)
            return _Answer(reply=reply, calls=tuple(calls.calls))
        is_truncated = one.finish_reason == "length"
        reply = self._episode.step(one.text, calls.calls, is_truncated=is_truncated)
        made = tuple(calls.calls)
        return _Answer(reply=reply, calls=made, made=made, is_over=reply.is_done)


def _error(name: str, text: str) -> Message:
    return {"role": "tool", "name": name or "error", "content": f"Error: {text}"}


def _by_tokens(live: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """The rows in order, cut where they have more than MAX_PREFILL_TOKENS together."""
    some: list[int] = []
    total = 0
    for row, length in zip(live, lengths, strict=True):
        if some and total + length > MAX_PREFILL_TOKENS:
            yield some
            some, total = [], 0
        some.append(row)
        total += length
    if some:
        yield some
