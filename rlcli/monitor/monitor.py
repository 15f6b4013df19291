"""Record a run's numbers: metrics.jsonl, status.json, rollouts and the console."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import psutil

from rlcli.errors import TrainingError
from rlcli.monitor.console import RunConsole, epoch_line
from rlcli.monitor.health import Health, HealthLog
from rlcli.monitor.rollout_stats import common_error, length_correlation, zero_facts
from rlcli.monitor.trackers import Trackers
from rlcli.run_dir.folder import RunDir, State, in_words
from rlcli.system.signals import StopRequest
from rlcli.terminal.i18n import translator
from rlcli.terminal.logs import Shown, show_with, to_stderr
from rlcli.types import Response, Reward, StepRecord

LOG = logging.getLogger(__name__)


class HasEpoch(Protocol):
    """Has the current epoch, counted from 0."""

    @property
    def epoch(self) -> int: ...


class Monitor:
    """Records steps as they end. `prompts_per_epoch` and `epochs` are only used for display.

    Without the console tracker, notes are shown but steps are not.
    """

    def __init__(
        self,
        run_dir: RunDir,
        console: RunConsole,
        stop: StopRequest,
        *,
        prompts_per_epoch: int,
        epochs: int,
        trackers: Trackers | None = None,
        health: Health | None = None,
        lang: str = "en",
    ) -> None:
        self.run_dir, self.console, self.stop = run_dir, console, stop
        self._lang, translate = lang, translator(lang)
        show_with(Shown(self._show, lang=lang))
        stop.acknowledged_by = lambda text: console.show_stopping(translate(text))
        self.trackers = Trackers() if trackers is None else trackers
        self.prompts_per_epoch, self.epochs = prompts_per_epoch, epochs
        self._health = HealthLog(run_dir.path, health)
        self._correlation: StepRecord = {}
        self._zero_facts: StepRecord = {}
        self._error = ""
        self.last_step = 0
        self.evaluations: list[tuple[int, float]] = []
        self.held_out_rewards: list[tuple[int, float]] = []
        self._epoch_begun = time.monotonic()
        self._process = psutil.Process()

    @property
    def stop_requested(self) -> bool:
        """Whether the run received a signal to stop."""
        return self.stop.signal is not None

    @property
    def was_interrupted(self) -> bool:
        """Whether that signal was Ctrl-C."""
        return self.stop.signal == signal.SIGINT

    def note(self, text: str) -> None:
        """Log a message for the user; the console shows it."""
        LOG.info(text)

    def _show(self, text: str, level: int) -> None:
        self.console.line(text, style="yellow", level=level)

    def close(self) -> None:
        """Close the console; messages go to stderr from now on."""
        show_with(Shown(to_stderr, lang=self._lang))
        self.console.close()

    def begin(self, step: int) -> None:
        """Record that the first step is about to start."""
        self.last_step = step
        self._health.begin(step)
        self._write_status("running", step, resumable=step > 0)
        self._show_notes(self.trackers.begin(step))
        if self.trackers.has_console:
            self.console.start(step)

    def end(self, state: State, step: int, *, resumable: bool, reason: str = "") -> None:
        """Record that the run ended or paused, with the reason."""
        self.console.phase(in_words(state))
        self.console.stop()
        self._write_status(state, step, resumable=resumable, reason=reason)
        self._show_notes(self.trackers.close(failed=state in ("failed", "running")))

    def _write_status(self, state: State, step: int, *, resumable: bool, reason: str = "") -> None:
        num_steps = self.console.num_steps
        self.run_dir.write_status(
            state, step, resumable=resumable, reason=reason, num_steps=num_steps
        )

    def _show_notes(self, notes: Sequence[str]) -> None:
        for text in notes:
            self.note(text)

    @contextmanager
    def step(self, step: int, prompts: HasEpoch) -> Iterator[StepRecord]:
        """Collects the metrics of step `step` (0-based) and writes them when it ends."""
        record: StepRecord = {}
        epoch = prompts.epoch + 1
        begun = time.perf_counter()
        self.console.phase("sampling and learning")
        yield record
        seconds = time.perf_counter() - begun
        sampled = record.pop("sampled_tokens", 0.0)
        record["tokens_per_s"] = sampled / max(seconds, 1e-9)
        record["time/step_s"] = seconds
        record["memory/rss_gib"] = self._process.memory_info().rss / 2**30
        record.update(self._correlation)
        if self.trackers.has_console:
            self.console.step(step + 1, epoch, record)
        if prompts.epoch >= epoch:
            self._end_epoch(epoch)
        self._write({"step": step + 1, "epoch": epoch, **record})
        seen = {**record, **self._zero_facts}
        self._show_notes(self._health.after(step + 1, seen, error=self._error))
        self.last_step = step + 1
        self._write_status("running", step + 1, resumable=self.run_dir.has_checkpoint)

    def _end_epoch(self, epoch: int) -> None:
        took = time.monotonic() - self._epoch_begun
        total = self.prompts_per_epoch
        if self.trackers.has_console:
            self.console.line(epoch_line(epoch, self.epochs, total, total, took))
        self._epoch_begun = time.monotonic()

    @contextmanager
    def evaluation(self, step: int) -> Iterator[StepRecord]:
        """Collects a held-out score after `step` steps and writes it."""
        record: StepRecord = {}
        begun = time.perf_counter()
        self.console.phase("evaluating")
        yield record
        record["time/eval_s"] = time.perf_counter() - begun
        score = record.get("eval/pass@1")
        if score is not None:
            self.evaluations.append((step, score))
        if "eval/reward_mean" in record:
            self.held_out_rewards.append((step, record["eval/reward_mean"]))
        if self.trackers.has_console:
            self.console.evaluation(step, record)
        self._write({"step": step, **record})
        self._show_notes(self._health.after_evaluation(step, record))

    def standing_verdicts(self) -> list[str]:
        """Health verdicts that still hold, one line each."""
        return self._health.standing()

    def _write(self, values: dict[str, float]) -> None:
        row = _finite(values)
        try:
            with self.run_dir.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise TrainingError(
                f"cannot write to {self.run_dir.metrics}: {error.strerror}.\n"
                "Free some space, then --resume auto."
            ) from error
        self._show_notes(self.trackers.log(int(values["step"]), row))

    def rollouts(self, step: int, rollouts: Sequence[Response], rewards: Sequence[Reward]) -> None:
        """Write the rollouts of step `step` with their rewards."""
        self._correlation = length_correlation(rollouts, rewards)
        self._zero_facts = zero_facts(rollouts, rewards)
        self._error = common_error(rewards)
        folder = self.run_dir.path / "rollouts"
        lines = (
            json.dumps(rollout_row(rollout, reward), ensure_ascii=False, default=str)
            for rollout, reward in zip(rollouts, rewards, strict=True)
        )
        path = folder / f"step_{step + 1:06d}.jsonl"
        try:
            folder.mkdir(exist_ok=True)
            path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="replace")
        except OSError as error:
            self.note(f"{path} not written: {error.strerror}")

    def state(self) -> dict[str, Any]:
        """State for the checkpoint: length of the metrics file, and the scores so far."""
        file = self.run_dir.metrics
        offset = file.stat().st_size if file.is_file() else 0
        return {
            "metrics_offset": offset,
            "evaluations": self.evaluations,
            "held_out_rewards": self.held_out_rewards,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore the checkpoint's state, and discard metrics written after it."""
        file = self.run_dir.metrics
        if file.is_file() and file.stat().st_size > state["metrics_offset"]:
            os.truncate(file, state["metrics_offset"])
        self.evaluations = [(step, score) for step, score in state["evaluations"]]
        # older checkpoints hold only the scores
        rewards = state.get("held_out_rewards", self.evaluations)
        self.held_out_rewards = [(step, reward) for step, reward in rewards]


class NullMonitor:
    """Monitor of the ranks other than 0; it writes and shows nothing."""

    stop_requested = False
    evaluations: Sequence[tuple[int, float]] = ()
    held_out_rewards: Sequence[tuple[int, float]] = ()

    def note(self, text: str) -> None:
        """Does nothing: rank 0 shows notes."""

    def begin(self, step: int) -> None:
        """See Monitor."""

    @contextmanager
    def step(self, step: int, prompts: HasEpoch) -> Iterator[StepRecord]:
        """See Monitor."""
        yield {}

    @contextmanager
    def evaluation(self, step: int) -> Iterator[StepRecord]:
        """See Monitor."""
        yield {}

    def rollouts(self, step: int, rollouts: Sequence[Response], rewards: Sequence[Reward]) -> None:
        """See Monitor."""

    def state(self) -> dict[str, Any]:
        """Empty: rank 0 writes checkpoints."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """See Monitor."""


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    """Replace NaN and infinity, which JSON lacks, with None."""
    return {k: v if math.isfinite(v) else None for k, v in values.items()}


def rollout_row(rollout: Response, reward: Reward) -> dict[str, Any]:
    """One response as a row of the rollouts file; an episode with its dialogue."""
    row = {
        "id": rollout.prompt.id,
        "prompt": "\n".join(m["content"] for m in rollout.prompt.messages),
        "response": rollout.text,
        "ground_truth": rollout.prompt.ground_truth,
        "reward": reward.value,
        "parts": dict(reward.parts),
        "error": reward.error,
        "reason": reward.reason,
        "finish_reason": rollout.finish_reason,
        "length": rollout.num_tokens,
        "policy_version": rollout.policy_version,
    }
    if not rollout.turns:
        return row
    return row | {"turns": len(rollout.turns), "dialogue": dialogue_of(rollout)}


def dialogue_of(rollout: Response) -> list[dict[str, Any]]:
    """The messages of an episode behind its prompt: the policy's and the environment's."""
    messages: list[dict[str, Any]] = []
    for turn in rollout.turns:
        messages.append({"role": "assistant", "content": turn.text})
        messages += [dict(reply) for reply in turn.replies]
    return messages
