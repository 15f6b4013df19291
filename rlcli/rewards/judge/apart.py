"""The judge as a `Scorer` beside the trainer: its calls take no time from the sampler's Python."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late
from contextlib import suppress
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from rlcli.config.rewards import JudgeConfig
from rlcli.rewards.judge.canaries import due_answers
from rlcli.rewards.judge.messages import CLOSE, Call, Opening
from rlcli.rewards.judge.scorer import CLOSE_S, can_come_back
from rlcli.rewards.process import child_environment, obituary
from rlcli.types import Prompt, Reward, Rollout, StepRecord

ANSWER_S = 30.0
"""Seconds to wait for an answer that needs no call of the judge; a process starts in 1 to 2."""
SCORING = ("submit", "submit_afresh")
"""The calls whose answers are rewards."""


class JudgeProcess:
    """A `JudgeScorer` in a child, which is started again when it dies.

    Only texts go there. What it was about to score when it died comes back unscored, what it had
    spent is in the run's directory. log: file for what the SDKs print; none: nowhere.
    """

    def __init__(
        self,
        config: JudgeConfig,
        *,
        env: Mapping[str, str],
        lang: str,
        run_dir: Path,
        log: Path | None = None,
    ) -> None:
        self._opening = Opening(config=config, env={**env}, lang=lang, run_dir=run_dir, state={})
        self._log = log
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._is_closed = False
        self._child = _Child(self._opening, log)

    def submit(self, rollout: Rollout, *, before: Reward | None = None) -> Future[Reward]:
        """Begin to score one rollout; returns at once.

        The future raises Paused when no call can help any more: a refused key, a spent budget.
        """
        return self._call("submit", slim(rollout))

    def canaries(self, step: int, prompts: Sequence[Prompt]) -> list[Future[Reward]]:
        """Known bad answers being judged afresh, every reward.judge.canary_every steps from 0."""
        due = due_answers(self._opening.config.canary_every, step, prompts)
        return [self._call("submit_afresh", slim(one)) for one in due]

    def settle(self, rewards: Sequence[Reward], *, learns: bool) -> list[Reward]:
        """The rewards as they are."""
        return [*rewards]

    def trouble(self) -> str | None:
        """A member that does not answer, or asks to wait."""
        return self._ask("trouble", otherwise=None)

    def metrics(self) -> StepRecord:
        """What the calls came to since the last time, and where limits stand now."""
        return self._ask("metrics", otherwise={})

    def can_recover(self, unscored: Reward) -> bool:
        """A judge comes back; a content filter says the same every time."""
        return can_come_back(unscored)

    def state(self) -> dict[str, Any]:
        """Dollars spent, with what calls under way may cost."""
        state = self._ask("state", otherwise=self._opening.state)
        self._opening = replace(self._opening, state=state)
        return dict(state)

    def load_state(self, state: Mapping[str, Any]) -> None:
        """What was spent before counts against reward.judge.max_cost, and what is since."""
        self._opening = replace(self._opening, state=dict(state))
        self._call("load_state", dict(state))

    def close(self) -> None:
        """Give up what is being scored and end the process."""
        if self._is_closed:
            return
        self.state()
        with self._lock:
            self._is_closed = True
            self._child.close()

    def _ask(self, method: str, *arguments: Any, otherwise: Any) -> Any:
        """The answer, or `otherwise` where the process is gone or has too much to do."""
        if self._is_closed or not self._child.is_alive:
            return otherwise
        try:
            return self._call(method, *arguments).result(timeout=ANSWER_S)
        except (Late, _Gone):
            return otherwise

    def _call(self, method: str, *arguments: Any) -> Future[Any]:
        with self._lock:
            if self._is_closed:
                raise RuntimeError("the scorer is closed")
            if not self._child.is_alive:
                self._child.close()
                self._child = _Child(self._opening, self._log)
            call = Call(number=next(self._numbers), method=method, arguments=arguments)
            return self._child.call(call)


def slim(rollout: Rollout) -> Rollout:
    """What a judge reads of a rollout; tokens and the row's other columns stay here."""
    prompt = replace(rollout.prompt, token_ids=(), extra_info={})
    return replace(rollout, prompt=prompt, token_ids=(), logprobs=())


class _Gone(Exception):
    """The process ended before it answered."""


class _Child:
    """One process, and what it has not answered yet."""

    def __init__(self, opening: Opening, log: Path | None) -> None:
        self._pending: dict[int, tuple[str, Future[Any]]] = {}
        self._lock = threading.Lock()
        self._end: BaseException | None = None
        self._is_closing = False
        self._connection, theirs = Pipe()
        with open(log or os.devnull, "ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "rlcli.rewards.judge.child", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(theirs.fileno(),),
                env=child_environment(os.environ),
                start_new_session=True,  # Ctrl-C is the trainer's; without it the pipe ends
            )
        theirs.close()
        self._send(opening)
        self._reader = threading.Thread(target=self._read, name="judge-answers", daemon=True)
        self._reader.start()

    @property
    def is_alive(self) -> bool:
        return self._end is None

    def call(self, call: Call) -> Future[Any]:
        """The answer to come. A rollout that gets none is unscored; all else raises _Gone."""
        future: Future[Any] = Future()
        with self._lock:
            self._pending[call.number] = (call.method, future)
        self._send(call)
        if self._end is not None:
            self._give_up(self._end)
        return future

    def close(self) -> None:
        """End the process, at once where it does not end by itself."""
        self._is_closing = True
        self._send(Call(number=-1, method=CLOSE))
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=4 * CLOSE_S)
        self._process.kill()
        self._process.wait()
        self._reader.join()
        self._connection.close()

    def _send(self, message: Opening | Call) -> None:
        with suppress(OSError):  # the reader sees the end of a dead process, and says how it died
            self._connection.send(message)

    def _read(self) -> None:
        """Hand out answers until the process ends."""
        while True:
            try:
                answer = self._connection.recv()
            except (EOFError, OSError):
                gone = _Gone(obituary(self._process, "the judge's process"))
                return self._give_up(gone)
            if isinstance(answer, BaseException):
                return self._give_up(answer)
            with self._lock:
                _, future = self._pending.pop(answer.number)
            _resolve(future, answer.value, answer.error)

    def _give_up(self, end: BaseException) -> None:
        """What has no answer gets none."""
        with self._lock:
            self._end = end
            pending, self._pending = self._pending, {}
        for method, future in pending.values():
            if self._is_closing:
                future.cancel()
            elif isinstance(end, _Gone) and method in SCORING:
                _resolve(future, Reward(value=None, error=f"judge: {end}"))
            else:
                _resolve(future, None, end)


def _resolve(future: Future[Any], value: Any, error: BaseException | None = None) -> None:
    if not future.set_running_or_notify_cancel():
        return
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)
