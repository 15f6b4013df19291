"""Scores rollouts in processes that may hang or crash: each is killed and replaced."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rlcli.errors import RewardError
from rlcli.rewards.in_process import RewardCaller, is_here, start_caller
from rlcli.rewards.loading import is_rule
from rlcli.rewards.process import CallFailed, NotStarted, is_secret
from rlcli.rewards.threaded_scorer import ThreadedScorer
from rlcli.types import Reward, Rollout


class ScorerPool(ThreadedScorer):
    """A `Scorer` over `workers` processes that run `reward.fn`.

    timeout_s: of one call, from the moment the reward begins to work. weights: of the parts of
    the dict a reward returns; empty: its `score` counts. log: file for what rewards print.
    allows_unsafe: whether the model's code may run without a sandbox where none works.
    """

    def __init__(
        self,
        fn: str,
        *,
        workers: int,
        timeout_s: float,
        weights: Mapping[str, float] | None = None,
        log: Path | None = None,
        allows_unsafe: bool = False,
    ) -> None:
        super().__init__()
        self._weights = dict(weights or {})
        start = partial(start_caller, fn, timeout_s=timeout_s, log=log, allows_unsafe=allows_unsafe)
        workers = 1 if is_here(fn) else workers  # users' functions need not be thread-safe
        self._lanes = [_Lane(start, is_rule=is_rule(fn)) for _ in range(workers)]
        self._start("score", [partial(self._serve, lane) for lane in self._lanes])

    def can_recover(self, unscored: Reward) -> bool:
        """Never: the function has to be mended."""
        return False

    def _give_up(self) -> None:
        for lane in self._lanes:
            lane.stop()

    def _serve(self, lane: _Lane) -> None:
        # This thread starts every process of its lane: they die with the thread.
        lane.warm_up()
        while (job := self._jobs.get()) is not None:
            future, rollout = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(read_reply(lane.call(rollout), weights=self._weights))
            except BaseException as error:  # a bug of ours: whoever waits must see it
                future.set_exception(error)
        lane.drop()


class _Lane:
    """One process at a time, replaced when it is lost."""

    def __init__(self, start: Callable[[], RewardCaller], *, is_rule: bool) -> None:
        self._start = start
        self._is_rule = is_rule
        self._lock = threading.Lock()
        self._process: RewardCaller | None = None
        self._is_closed = False

    def warm_up(self) -> None:
        """Have a process that loads the reward while nobody waits for it."""
        with self._lock:
            if self._process is None and not self._is_closed:
                self._process = self._start()

    def call(self, rollout: Rollout) -> dict[str, Any]:
        """{"score", "parts"} of a rollout, or {"error"}. A lost process is replaced."""
        try:
            return self._call(call_of(rollout, is_rule=self._is_rule))
        except (CallFailed, RewardError) as error:
            self.drop()
            self.warm_up()
            return {"error": str(error)}

    def drop(self) -> None:
        """Have no process."""
        with self._lock:
            if self._process:
                self._process.close()
                self._process = None

    def stop(self) -> None:
        """Kill the process, whatever it does, and start no other. From any thread."""
        with self._lock:
            self._is_closed = True
            if self._process:
                self._process.stop()

    def _call(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return self._ready_process().call(arguments)
        except NotStarted:
            # Something else ended the idle process; the call itself has not been tried.
            self.drop()
            return self._ready_process().call(arguments)

    def _ready_process(self) -> RewardCaller:
        self.warm_up()
        if self._process is None:
            raise CallFailed("the scorer was closed")
        self._process.wait_until_ready()
        return self._process


def call_of(rollout: Rollout, *, is_rule: bool) -> dict[str, Any]:
    """Keyword arguments of one call; users' functions may choose from more than rules get."""
    prompt = rollout.prompt
    call: dict[str, Any] = {
        "data_source": prompt.data_source,
        "solution_str": rollout.text,
        "ground_truth": prompt.ground_truth,
        "extra_info": dict(prompt.extra_info),
    }
    if is_rule:
        return call
    return call | {
        "messages": [dict(message) for message in prompt.messages],
        "columns": dict(prompt.columns),
        "token_ids": list(rollout.token_ids),
    }


def read_reply(reply: Mapping[str, Any], *, weights: Mapping[str, float]) -> Reward:
    """The `Reward` of a process's reply; with `weights`, their sum over the parts."""
    is_undecided = bool(reply.get("undecided"))
    if "error" in reply:
        error = with_key_hint(reply["error"])
        return Reward(value=None, error=error, is_undecided=is_undecided)
    score: float | None = reply["score"]
    parts: dict[str, float] = reply["parts"]
    if not weights:
        error = None if score is not None else _no_score(parts)
        reason = reply.get("reason")
        return Reward(
            value=score, parts=parts, error=error, reason=reason, is_undecided=is_undecided
        )
    known = parts if score is None else parts | {"score": score}
    missing = [name for name in weights if name not in known]
    if missing:
        error = (
            f"reward.weights names {', '.join(missing)}; "
            f"the reward returned {', '.join(known) or 'none'}"
        )
        return Reward(value=None, parts=parts, error=error)
    return Reward(
        value=sum(weight * known[name] for name, weight in weights.items()),
        parts={name: value for name, value in known.items() if name in parts or name in weights},
    )


def _no_score(parts: Mapping[str, float]) -> str:
    weights = ", ".join(f"{name}: 1.0" for name in parts)
    return (
        f"the reward returned a dict without 'score' (it has {', '.join(parts)}): add 'score', "
        f"or set reward.weights={{{weights}}}"
    )


def with_key_hint(error: str) -> str:
    """The error, with a hint if it names an environment variable withheld from rewards."""
    for name in os.environ:
        if is_secret(name) and name in error:
            return f"{error} (keys are kept from reward functions: see --use_api_reward)"
    return error
