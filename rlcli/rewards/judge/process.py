"""The judge as a `Scorer` beside the trainer: its calls take no time from the sampler's Python."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlcli.config.rewards import JudgeConfig
from rlcli.errors import RewardError, RlcliError
from rlcli.rewards.judge.canaries import due_answers
from rlcli.rewards.judge.messages import Asking, Opening, Scoring
from rlcli.rewards.judge.process_client import ProcessClient, ProcessExited
from rlcli.rewards.judge.scorer import can_come_back
from rlcli.rewards.judge.templates import load_template
from rlcli.types import Prompt, Reward, Rollout, StepRecord

ANSWER_S, LAST_ANSWER_S = 20.0, 2.0
"""Seconds to wait for an answer that needs no call of the judge, and for the last of all. A
process starts in 1 to 2."""
STUCK_S = 300.0
"""Seconds without such an answer after which the process is killed."""
MAX_FAILED_STARTS = 3
"""Processes in a row that may end before they answer anything."""


class JudgeProcess:
    """A `JudgeScorer` in a child, which is started again when it dies.

    What it was about to score when it died comes back unscored, what it had spent is in the run's
    directory. log: file for tracebacks and what the SDKs print; none: nowhere.

    Raises:
        RewardError: the template cannot be read; `check_judge` finds it sooner.
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
        template, _ = load_template(config, lang=lang)
        self._opening = Opening(
            config=config, template=template, env={**env}, lang=lang, run_dir=run_dir, state={}
        )
        self._log = log
        self._lock = threading.Lock()  # one process at a time
        self._is_closed = False
        self._late_since: float | None = None
        self._stillborn = self._restarts = 0
        self._news: str | None = None
        self._client = ProcessClient(self._opening, log)

    def submit(self, rollout: Rollout, *, before: Reward | None = None) -> Future[Reward]:
        """Begin to score one rollout; returns at once.

        The future raises Paused when no call can help any more: a refused key, a spent budget.

        Raises:
            RewardError: the process has ended as it started, three times.
        """
        return self._score("submit", rollout)

    def canaries(self, step: int, prompts: Sequence[Prompt]) -> list[Future[Reward]]:
        """Known bad answers being judged afresh, every reward.judge.canary_every steps from 0."""
        due = due_answers(self._opening.config.canary_every, step, prompts)
        return [self._score("submit_afresh", one) for one in due]

    def normalize(self, rewards: Sequence[Reward], *, update_stats: bool) -> list[Reward]:
        """The rewards as they are."""
        return [*rewards]

    def trouble(self) -> str | None:
        """A member that does not answer, or asks to wait; a process that died or is stuck."""
        if self._news is not None:
            news, self._news = self._news, None
            return news
        was_late = self._late_since is not None
        said = self._ask("trouble", otherwise=None)
        if self._late_since is None or said is not None:
            return said
        if time.monotonic() - self._late_since > STUCK_S:
            self._client.kill()
        if was_late:
            return None
        return f"the judge's process ({self._client.pid}) does not answer."

    def metrics(self) -> StepRecord:
        """What the calls came to since the last time, and where limits stand now."""
        found: StepRecord = self._ask("metrics", otherwise={})
        return found | ({"judge/restarts": float(self._restarts)} if self._restarts else {})

    def can_recover(self, unscored: Reward) -> bool:
        """A judge comes back; a content filter says the same every time."""
        return can_come_back(unscored)

    def state(self) -> dict[str, Any]:
        """Dollars spent, with what calls under way may cost."""
        return self._state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """What was spent before counts against reward.judge.max_cost, and what is since."""
        self._opening = replace(self._opening, state=dict(state))
        self._client.call("load_state", dict(state))

    def close(self) -> None:
        """Give up what is being scored and end the process."""
        if self._is_closed:
            return
        try:
            self._state(LAST_ANSWER_S)
        finally:
            self._is_closed = True
            self._client.close()

    def _state(self, timeout_s: float | None = None) -> dict[str, Any]:
        state = self._ask("state", otherwise=self._opening.state, timeout_s=timeout_s)
        self._opening = replace(self._opening, state=state)
        return dict(state)

    def _ask(self, method: Asking, *, otherwise: Any, timeout_s: float | None = None) -> Any:
        """The answer; `otherwise` where the process is gone, or was too late before."""
        partner = self._client
        if self._is_closed or not partner.is_alive:
            return otherwise
        if self._late_since is not None and partner.answered_at < self._late_since:
            return otherwise
        asked_at, self._late_since = time.monotonic(), None
        try:
            return partner.call(method).result(timeout=timeout_s or ANSWER_S)
        except Late:
            self._late_since = asked_at
        except (ProcessExited, RlcliError):  # whoever scores is told
            pass
        return otherwise

    def _score(self, method: Scoring, rollout: Rollout) -> Future[Reward]:
        with self._lock:
            if self._is_closed:
                raise RuntimeError("the scorer is closed")
            if not self._client.is_alive:
                self._start_again()
            return self._client.call(method, slim(rollout))

    def _start_again(self) -> None:
        end = self._client.end
        self._stillborn = 0 if self._client.answered_at else self._stillborn + 1
        if self._stillborn >= MAX_FAILED_STARTS:
            raise RewardError(f"{end}, {self._stillborn} times as it started.")
        self._client.close()
        self._restarts += 1
        self._news = f"{end}; it is started again."
        self._late_since = None
        self._client = ProcessClient(self._opening, self._log)


def slim(rollout: Rollout) -> Rollout:
    """What a judge reads of a rollout; tokens and the row's other columns stay here."""
    prompt = replace(rollout.prompt, token_ids=(), extra_info={})
    return replace(rollout, prompt=prompt, token_ids=(), logprobs=())
