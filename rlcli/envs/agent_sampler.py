"""Episodes of agents: programs that call the policy through an OpenAI client, as a sampler.

Each episode is a process. Its calls wait until every running agent waits, or until
`batch_wait_s` is over, and are then sampled together.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from queue import Empty, SimpleQueue

from torch import Tensor

from rlcli.envs.agents import AgentEnd, Agents
from rlcli.envs.answering import answer
from rlcli.envs.chat import texts_of
from rlcli.envs.endpoint import Endpoint, WaitingCall
from rlcli.envs.recording import (
    ChatTexts,
    Recorder,
    RowLimits,
    num_shared_tokens,
    with_tokens,
)
from rlcli.envs.tasks import SEED, TASK
from rlcli.rollout.base import OnFinish, SamplingParams
from rlcli.rollout.native import NativeSampler
from rlcli.run_dir.rollout_files import printable
from rlcli.types import Prompt, Reward, Rollout

START_LIMIT_S = 120.0
"""Seconds until an agent's first call: it imports its packages, beside many others."""
MAX_ATTEMPTS = 2
MAX_REFUSED = 20
"""Refused calls in a row after which an agent that calls again is ended."""
PARTS = "parts"
UNLIKE = (
    "conversations of one task begin with different tokens; with a chat template, or the same "
    "first word, they would not"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentLimits:
    """Seconds: of an agent between a reply and its next call, of an agent in all, and that calls
    wait for those of other agents. concurrency: agents side by side. scores: whether they give
    the reward."""

    timeout_s: float
    episode_timeout_s: float
    batch_wait_s: float
    concurrency: int
    scores: bool


class AgentSampler:
    """A `Sampler` whose rollouts are episodes of agents that `sampler` writes for."""

    def __init__(
        self,
        sampler: NativeSampler,
        texts: ChatTexts,
        rows: RowLimits,
        limits: AgentLimits,
        agents: Agents,
        events: SimpleQueue[WaitingCall | AgentEnd],
        *,
        max_num_seqs: int,
    ) -> None:
        self.sampler, self.texts, self.rows, self.limits = sampler, texts, rows, limits
        self.agents, self.events, self.max_num_seqs = agents, events, max_num_seqs
        total = rows.max_prompt_tokens + rows.max_row_tokens
        self.endpoint = Endpoint(events, max_tokens=total)
        self.is_exact = sampler.is_exact
        self.numbers = count()

    def load_weights(self, weights: Iterator[tuple[str, Tensor]], *, version: int) -> None:
        """See Sampler."""
        self.sampler.load_weights(weights, version=version)

    def sleep(self) -> None:
        """See Sampler."""
        self.sampler.sleep()

    def close(self) -> None:
        """End the agents, then the sampler."""
        self.agents.close()
        self.endpoint.close()
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
        """params.n episodes per prompt, prompts in order; each ends with its agent.

        What is drawn for a turn depends on the seed, the prompt's place, the row and the tokens
        before the turn.
        """
        prompt_indices = range(len(prompts)) if prompt_indices is None else prompt_indices
        episodes = [
            _Episode(self, prompt, place=place * params.n + i)
            for prompt, place in zip(prompts, prompt_indices, strict=True)
            for i in range(params.n)
        ]
        out: list[Rollout | None] = [None] * len(episodes)
        heads: dict[int, int] = {}
        step = _Step(self, episodes, params, seed=seed)
        try:
            for i in step.run():
                if episodes[i].check_prompt_head(heads, i // params.n):
                    out[i] = done = episodes[i].scored(params)
                    if on_finish is not None:
                        on_finish(i, done)
        finally:
            step.close()
        for start in range(0, len(episodes), params.n):
            group = range(start, start + params.n)
            rows = {i: episodes[i].recorder.rows() for i in group if out[i] is not None}
            every = [row for some in rows.values() for row in some]
            shared = num_shared_tokens(every) if every else 0
            prompt = episodes[start].prompt
            if every:
                prompt = replace(prompt, token_ids=every[0].prompt_ids[:shared])
            for i in group:
                if (done := out[i]) is not None:
                    out[i] = with_tokens(done, rows[i], num_shared=shared)
                    continue
                out[i] = done = self._blank(episodes[i], prompt, params, seed=seed)
                if on_finish is not None:
                    on_finish(i, done)
        return [each for each in out if each is not None]

    def _blank(
        self, episode: _Episode, prompt: Prompt, params: SamplingParams, *, seed: int
    ) -> Rollout:
        """A rollout of one token for an episode without a turn; it is never trained on."""
        (one,) = self.sampler.generate(
            [prompt], replace(params, n=1, max_tokens=1), seed=seed, prompt_indices=[episode.place]
        )
        return replace(one, reward=episode.reward, finish_reason="env")


class _Episode:
    """One run of an agent, or two: after a failure it is started again from the same seed."""

    def __init__(self, owner: AgentSampler, prompt: Prompt, *, place: int) -> None:
        self.prompt, self.place = prompt, place
        self._owner = owner
        extra = prompt.extra_info
        task = {**extra.get(TASK, prompt.columns), "seed": extra.get(SEED, 0)}
        self._task = json.dumps(task, default=str)
        self.attempts = 0
        self.key = ""
        self.number = -1
        self.reward: Reward | None = None
        self.recorder = self._new_recorder()
        self.waiting: list[WaitingCall] = []
        self.since_s = self.agent_s = self._spent_s = 0.0
        self.problem: str | None = None
        self._is_cut = False

    def _new_recorder(self) -> Recorder:
        return Recorder(self._owner.texts, self._owner.rows, place=self.place)

    def start(self) -> None:
        """Start the agent."""
        owner = self._owner
        self.attempts += 1
        self.recorder, self.waiting, self.problem = self._new_recorder(), [], None
        self._is_cut = False
        self.key, self.number = owner.endpoint.open(), next(owner.numbers)
        self.since_s, self._spent_s = time.monotonic(), 0.0
        owner.agents.start(self.number, self._task, url=owner.endpoint.url, key=self.key)

    def take(self, call: WaitingCall) -> None:
        """A call begins to wait: the agent's clock stands still.

        An agent that calls again after MAX_REFUSED refused calls is killed.
        """
        if self.problem is not None or self._is_cut:
            return  # the call fails with the agent's end
        if self.recorder.num_refused >= MAX_REFUSED:
            self._end_refused()
            return
        if not self.waiting:
            self.agent_s = max(0.0, call.arrived_s - self.since_s)
            self._spent_s += self.agent_s
        self.waiting.append(call)

    def answered(self) -> None:
        """All calls that waited are answered: the agent's clock goes on."""
        self.waiting = []
        self.since_s = time.monotonic()

    def deadline_s(self) -> float:
        """When the agent is killed if it neither calls nor ends; infinity while it waits."""
        if self.waiting:
            return math.inf
        limits, is_first = self._owner.limits, self.recorder.last is None
        step_s = max(START_LIMIT_S, limits.timeout_s) if is_first else limits.timeout_s
        return self.since_s + min(step_s, max(0.0, limits.episode_timeout_s - self._spent_s))

    def time_out(self) -> None:
        """Kill the agent; its end is reported like any other."""
        limits = self._owner.limits
        spent_s = self._spent_s + time.monotonic() - self.since_s
        if spent_s >= limits.episode_timeout_s:
            self.problem = (
                f"the agent took longer than {limits.episode_timeout_s:g} s in all "
                "(env.episode_timeout_s)"
            )
        elif self.recorder.last is None:
            self.problem = "the agent made no call in time"
        else:
            self.problem = (
                f"the agent neither called nor ended within {limits.timeout_s:g} s (env.timeout_s)"
            )
        self._kill()

    def _end_refused(self) -> None:
        if self.recorder.cut is not None and self.recorder.last is not None:
            self._is_cut = True
        else:
            self.problem = (
                f"the agent went on after {MAX_REFUSED} refused calls in a row: "
                f"{self.recorder.refusal}"
            )
        self._kill()

    def _kill(self) -> None:
        self.waiting, self.since_s = [], math.inf
        self._owner.agents.kill(self.number)

    def give_up(self) -> None:
        """Kill the agent; nobody waits for its end."""
        self._owner.endpoint.close_key(self.key)
        self._owner.agents.kill(self.number)

    def end(self, end: AgentEnd) -> bool:
        """Take the agent's result; whether the episode is over, rather than to be run again."""
        self._owner.endpoint.close_key(self.key)
        self.waiting = []
        recorder, scores = self.recorder, self._owner.limits.scores
        failure, reward = self.problem or end.failure, None
        if failure is None and scores:
            reward, failure = read_reward(end.line)
        has_exited = end.status is not None and end.status >= 0
        has_stopped = self.problem is None and (has_exited or self._is_cut)
        if recorder.last is None and self.problem is None:
            failure = recorder.refusal or end.failure or "the agent ended without a call"
        elif failure is not None and recorder.cut is not None and has_stopped:
            # the policy reached a limit, and the agent could not go on: that is no failure
            self.reward = Reward(value=0.0) if scores else None
            return True
        self.reward = reward if failure is None else Reward(value=None, error=printable(failure))
        return failure is None or self.attempts == MAX_ATTEMPTS

    def check_prompt_head(self, heads: dict[int, int], group: int) -> bool:
        """Whether there is something to train on. heads: the first token of each group's rows.

        A group has one prompt in training, which needs one token at least.
        """
        rows = self.recorder.rows()
        if not rows:
            return False
        head = heads.setdefault(group, rows[0].prompt_ids[0])
        if all(row.prompt_ids[0] == head for row in rows):
            return True
        if self.reward is None or self.reward.value is not None:
            self.reward = Reward(value=None, error=UNLIKE)
        return False

    def scored(self, params: SamplingParams) -> Rollout:
        """The episode without its tokens, for scorers."""
        recorder = self.recorder
        assert recorder.last is not None
        return replace(
            recorder.last,
            prompt=replace(self.prompt, messages=texts_of(recorder.first_messages)),
            greedy=params.temperature == 0,
            finish_reason=recorder.finish_reason,
            turns=tuple(recorder.turns),
            reward=self.reward,
        )


class _Step:
    """The episodes of one `generate`."""

    def __init__(
        self,
        owner: AgentSampler,
        episodes: Sequence[_Episode],
        params: SamplingParams,
        *,
        seed: int,
    ) -> None:
        self._owner, self._episodes = owner, episodes
        self._params, self._seed = params, seed
        self._todo = list(range(len(episodes)))[::-1]
        self._live: dict[int, int] = {}

    def run(self) -> Iterator[int]:
        """The number of each episode as it ends."""
        while self._todo or self._live:
            while self._todo and len(self._live) < self._owner.limits.concurrency:
                self._start(self._todo.pop())
            for event in self._events():
                if isinstance(event, AgentEnd):
                    if (i := self._live.pop(event.number, None)) is None:
                        continue  # of a step that was given up
                    if self._episodes[i].end(event):
                        yield i
                    else:
                        self._start(i)
                else:
                    self._take(event)
            now = time.monotonic()
            for i in [*self._live.values()]:
                if self._episodes[i].deadline_s() <= now:
                    self._episodes[i].time_out()
            if self._is_time(now):
                self._answer()

    def close(self) -> None:
        """Kill the agents that still run, where the step is given up."""
        for i in self._live.values():
            self._episodes[i].give_up()

    def _start(self, i: int) -> None:
        self._episodes[i].start()
        self._live[self._episodes[i].number] = i

    def _by_key(self) -> Mapping[str, _Episode]:
        return {self._episodes[i].key: self._episodes[i] for i in self._live.values()}

    def _take(self, call: WaitingCall) -> None:
        episode = self._by_key().get(call.key)
        if episode is not None:
            episode.take(call)

    def _first_call_s(self) -> float:
        """When the first of the waiting calls arrived; infinity if none waits."""
        waiting = (call for i in self._live.values() for call in self._episodes[i].waiting)
        return min((call.arrived_s for call in waiting), default=math.inf)

    def _is_time(self, now: float) -> bool:
        """Whether to sample now: all agents are waiting, or one has reached batch_wait_s."""
        waiting = [bool(self._episodes[i].waiting) for i in self._live.values()]
        is_full = len(waiting) == self._owner.limits.concurrency or not self._todo
        late = now - self._first_call_s() >= self._owner.limits.batch_wait_s
        return any(waiting) and ((all(waiting) and is_full) or late)

    def _events(self) -> list[WaitingCall | AgentEnd]:
        """What has happened; waits for something, or until the next deadline."""
        now = time.monotonic()
        deadlines = [self._episodes[i].deadline_s() for i in self._live.values()]
        until = min([*deadlines, self._first_call_s() + self._owner.limits.batch_wait_s])
        events: list[WaitingCall | AgentEnd] = []
        queue = self._owner.events
        try:
            left_s = None if math.isinf(until) else max(0.0, until - now)
            events.append(queue.get(timeout=left_s))
            while True:
                events.append(queue.get_nowait())
        except Empty:
            return events

    def _answer(self) -> None:
        episodes = self._by_key()
        answer(
            [(call, each.recorder) for each in episodes.values() for call in each.waiting],
            {key: episode.agent_s for key, episode in episodes.items()},
            self._owner.sampler,
            self._params,
            seed=self._seed,
        )
        for episode in episodes.values():
            if episode.waiting:
                episode.answered()


def read_reward(line: str) -> tuple[Reward | None, str | None]:
    """(reward, why there is none) of an agent's last line: {"reward": 1.0, "parts": {...}}."""
    expected = 'expected {"reward": NUMBER} as the last line of its output'
    try:
        given = json.loads(line)
        value = float(given["reward"])
        parts = {
            printable(str(name)): float(each) for name, each in (given.get(PARTS) or {}).items()
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        return None, f"the agent gave no reward: {expected}, got {line[:100]!r}"
    if not all(map(math.isfinite, [value, *parts.values()])):
        return None, f"the agent gave a reward that is not finite: {line[:100]}"
    return Reward(value=value, parts=parts), None
