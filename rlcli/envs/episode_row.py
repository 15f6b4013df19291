"""One episode as it grows: its tokens, its turns, and what its environment answers.

A row is `prompt | model ids | environment ids | model ids ...`.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from rlcli.envs.calls import Calls, ToolCall, problem_of
from rlcli.envs.dialogue import CANNOT_SHOW, Dialogue
from rlcli.envs.episode import EnvFacts, EnvReply, Episode, EpisodeFailedError
from rlcli.envs.process import EnvPool
from rlcli.envs.tasks import OPENING, SEED, TASK
from rlcli.rollout.base import NextTurn
from rlcli.types import FinishReason, Message, Prompt, Reward, Rollout, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeLimits:
    """Bounds of an episode. max_turn_tokens: None: only the row is bounded."""

    max_turns: int
    max_turn_tokens: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeParts:
    """What all episodes of a sampler share."""

    pool: EnvPool
    facts: EnvFacts
    dialogue: Dialogue
    limits: EpisodeLimits


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


class EpisodeRow:
    """One episode: its tokens so far, its turns, and its environment."""

    def __init__(
        self, shared: EpisodeParts, prompt: Prompt, *, max_tokens: int, number: int
    ) -> None:
        self._shared, self._prompt = shared, prompt
        self._max_tokens = max_tokens
        self._ids: list[int] = []
        self._logprobs: list[float] = []
        self._mask: list[int] = []
        self._turns: list[Turn] = []
        self._rewards: list[float] = []
        self._parts: dict[str, float] = {}
        self._reason: FinishReason = "stop"
        self._error: str | None = None
        self._reward: Reward | None = None
        extra = prompt.extra_info
        self._episode = Episode(
            shared.pool,
            number,
            extra.get(TASK, prompt.columns),
            seed=extra.get(SEED, 0),
            form=shared.facts.form,
        )
        self._begun: Future[None] = Future()

    def begin(self, threads: ThreadPoolExecutor) -> None:
        """Have the environment begin."""
        if self._shared.facts.form == "functions":
            self._begun.set_result(None)
        else:
            self._begun = threads.submit(self._reset)

    def go_on(self, turn: Rollout) -> NextTurn | None:
        """Wait for the environment's answer to a turn; None: the episode is over.

        Called in a thread, for one turn at a time.
        """
        before = (*self._prompt.token_ids, *self._ids)
        self._ids += turn.token_ids
        self._logprobs += turn.logprobs
        self._mask += [1] * len(turn.token_ids)
        answer = self._answered(turn, self._shared.dialogue.parse(turn.token_ids, before))
        ids = self._settle(turn, answer)
        replies = self._shared.dialogue.shown(answer.reply.messages)
        one = _turn_of(turn, answer, replies=replies, num_reply_tokens=len(ids or ()))
        self._turns.append(one)
        if ids is None:
            self._reward = self._end()
            return None
        self._ids += ids
        self._logprobs += [0.0] * len(ids)
        self._mask += [0] * len(ids)
        room = self._max_tokens - len(self._ids)
        return NextTurn(
            token_ids=ids, max_tokens=min(room, self._shared.limits.max_turn_tokens or room)
        )

    def _settle(self, turn: Rollout, answer: _Answer) -> tuple[int, ...] | None:
        """The tokens up to the next turn; None and the reason if there is none."""
        reply = answer.reply
        if reply.reward is not None:
            self._rewards.append(reply.reward)
        self._parts.update(reply.parts)
        assert turn.finish_reason in ("stop", "length")
        self._reason = turn.finish_reason
        if answer.error is not None or answer.is_over:
            self._error = answer.error
            self._reason = "env" if reply.is_done or answer.error is not None else self._reason
            return None
        if len(self._turns) + 1 == self._shared.limits.max_turns:
            self._reason = "turns"
            return None
        try:
            ids = self._shared.dialogue.go_on(turn.token_ids, reply.messages, answer.calls)
        except Exception as error:  # of the chat template, which may refuse what it is given
            self._error = f"{CANNOT_SHOW}: {error}"
            self._reason = "env"
            return None
        if len(self._ids) + len(ids) >= self._max_tokens:
            self._reason = "length"
            return None
        return ids

    def _end(self) -> Reward | None:
        """The environment's reward; None where the scorer gives it."""
        facts = self._shared.facts
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

    def rollout(self, last: Rollout) -> Rollout:
        """The episode as a rollout. last: its last turn."""
        return replace(
            last,
            prompt=self._prompt,
            token_ids=tuple(self._ids),
            logprobs=tuple(self._logprobs),
            mask=tuple(self._mask),
            finish_reason=self._reason,
            turns=tuple(self._turns),
            reward=self._reward,
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
        """What the environment answers to a turn."""
        before_s = self._episode.seconds
        try:
            self._begun.result()
            if self._shared.facts.form == "steps":
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
        known = {schema["function"]["name"] for schema in self._shared.facts.schemas}
        return _error(name if name in known else "", text)

    def _called(self, calls: Calls) -> _Answer:
        """The results of tools; a turn without a call ends the episode."""
        if not calls.calls and not calls.failures:
            return _Answer(reply=EnvReply(), is_over=True)
        messages: list[Message] = []
        made: list[ToolCall] = []
        errors = 0
        for call in calls.calls:
            problem = problem_of(call, self._shared.facts.schemas)
            if len(made) == 1 and self._shared.dialogue.takes_one_call:
                problem = "only the first call of a turn is made."
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
        schemas = self._shared.facts.schemas
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


def _turn_of(
    turn: Rollout, answer: _Answer, *, replies: Sequence[Message], num_reply_tokens: int
) -> Turn:
    """replies: as the policy sees them."""
    assert turn.finish_reason in ("stop", "length")
    return Turn(
        text=turn.text,
        num_tokens=len(turn.token_ids),
        finish_reason=turn.finish_reason,
        replies=tuple(replies),
        num_reply_tokens=num_reply_tokens,
        tool_calls=tuple(call.name for call in answer.made),
        tool_errors=answer.reply.tool_errors,
        parse_failures=answer.num_failures,
        reward=answer.reply.reward,
        wait_s=answer.seconds,
    )


def _error(name: str, text: str) -> Message:
    return {"role": "tool", "name": name or "error", "content": f"Error: {text}"}
