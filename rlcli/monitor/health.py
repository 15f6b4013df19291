"""Detect problems of a run from its metrics, with the cause and the setting to change."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlcli.config.schema import Config
from rlcli.monitor.episode_health_checks import EPISODE_CHECKS
from rlcli.monitor.health_checks import CHECKS, HealthVerdict
from rlcli.monitor.held_out import HELD_OUT_FALLING, HeldOutScore, held_out_falling, read_score
from rlcli.monitor.judge_health_checks import JUDGE_CHECKS
from rlcli.monitor.trend import FIRST_KEPT, LAST_KEPT
from rlcli.run_dir.metrics_file import read_metrics, read_rows
from rlcli.types import StepRecord

HEALTH_FILE = "health.jsonl"

CLEAR_STEPS = 10
"""Steps without a verdict after which it may be reported again. Without this, a metric at the
edge of its range would be reported over and over."""


class Health:
    """Reports each verdict once, and again only after it has cleared."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._steps: list[StepRecord] = []
        self._active: dict[str, float] = {}
        self._scores: list[HeldOutScore] = []

    @property
    def active(self) -> frozenset[str]:
        """Names of the verdicts that held within the last CLEAR_STEPS steps."""
        return frozenset(self._active)

    def after_evaluation(self, record: Mapping[str, float | None]) -> list[HealthVerdict]:
        """New verdicts on the held-out score; `record` holds an evaluation and its step."""
        score = read_score(_finite(record))
        if score is None:
            return []
        self._scores.append(score)
        verdict = held_out_falling(self._scores, self._steps, self._config)
        if verdict is None:
            self._active.pop(HELD_OUT_FALLING, None)
            return []
        is_new = verdict.name not in self._active
        self._active[verdict.name] = math.inf  # until an evaluation passes the check
        return [verdict] if is_new else []

    def replay(self, record: Mapping[str, float]) -> list[HealthVerdict]:
        """New verdicts on a row of metrics.jsonl: a step if it has an epoch, or an evaluation."""
        if "epoch" not in record:
            return self.after_evaluation(record)
        return self.after(int(record["step"]), record)

    def after(
        self, step: int, record: Mapping[str, float | None], *, error: str = ""
    ) -> list[HealthVerdict]:
        """New verdicts after `step` steps. error: most frequent reason for unscored rollouts.

        NaN and infinity count as absent.
        """
        self._steps.append({**_finite(record), "step": step})
        # later steps are compared with the first ones; memory must not grow with the run
        if len(self._steps) > FIRST_KEPT + LAST_KEPT:
            del self._steps[FIRST_KEPT]
        verdicts = diagnose(self._steps, self._config)
        new = [verdict for verdict in verdicts if verdict.name not in self._active]
        self._active |= {verdict.name: step for verdict in verdicts}
        self._active = {k: last for k, last in self._active.items() if step - last < CLEAR_STEPS}
        return [_with_cause(verdict, error) for verdict in new]


def _finite(record: Mapping[str, float | None]) -> StepRecord:
    return {k: v for k, v in record.items() if v is not None and math.isfinite(v)}


def _with_cause(verdict: HealthVerdict, error: str) -> HealthVerdict:
    if verdict.name != "unscored" or not error:
        return verdict
    return replace(verdict, says=f"{verdict.says} Most often: {error.rstrip('.')}.")


def diagnose(steps: Sequence[StepRecord], config: Config) -> list[HealthVerdict]:
    """All verdicts that hold after the last of these steps."""
    verdicts = [check(steps, config) for check in (*CHECKS, *JUDGE_CHECKS, *EPISODE_CHECKS)]
    return [verdict for verdict in verdicts if verdict is not None]


class HealthLog:
    """Writes a run's verdicts to health.jsonl, one `{"step", "verdict", "says", "knob"}` a line.

    A write error does not fail the run: the verdict is still returned as a note.
    """

    def __init__(self, run: Path, health: Health | None) -> None:
        self._file, self._metrics, self._health = run / HEALTH_FILE, run / "metrics.jsonl", health

    def begin(self, step: int) -> None:
        """Continue after `step` steps: drop later verdicts, which a resumed run replaces."""
        kept = [row for row in read_rows(self._file) if row["step"] <= step]
        if self._file.is_file():
            with suppress(OSError):
                self._file.write_text("".join(map(_line, kept)), encoding="utf-8")
        if self._health is not None:
            steps, evaluations = read_metrics(self._metrics)
            for record in in_order(steps, evaluations):
                if record["step"] <= step:
                    self._health.replay(record)

    def after(self, step: int, record: Mapping[str, float | None], *, error: str = "") -> list[str]:
        """Notes for the user after a step, usually none."""
        verdicts = self._health.after(step, record, error=error) if self._health else []
        return self._note(step, verdicts)

    def after_evaluation(self, step: int, record: Mapping[str, float | None]) -> list[str]:
        """Notes for the user after an evaluation, usually none."""
        verdicts = self._health.after_evaluation({**record, "step": step}) if self._health else []
        return self._note(step, verdicts)

    def standing(self) -> list[str]:
        """The verdicts that still hold, as notes with the step at which each was found."""
        active = self._health.active if self._health else frozenset()
        return last_verdicts(self._file.parent, names=active)

    def _note(self, step: int, verdicts: Sequence[HealthVerdict]) -> list[str]:
        notes: list[str] = []
        for verdict in verdicts:
            row = {
                "step": step,
                "verdict": verdict.name,
                "says": verdict.says,
                "knob": verdict.cure,
            }
            with suppress(OSError), self._file.open("a", encoding="utf-8") as file:
                file.write(_line(row))
            notes.append(f"health: {verdict.says} {verdict.cure}")
        return notes


def in_order(
    steps: Sequence[Mapping[str, float]], evaluations: Sequence[Mapping[str, float]]
) -> list[Mapping[str, float]]:
    """Training steps and evaluations in time order: each step before its evaluation."""
    return sorted([*steps, *evaluations], key=lambda row: (row["step"], "epoch" not in row))


def last_verdicts(run: Path, names: frozenset[str] | None = None) -> list[str]:
    """One line for the newest row of each verdict in health.jsonl. names: include only these."""
    rows = {str(row.get("verdict")): row for row in read_rows(run / HEALTH_FILE)}
    return [
        f"health (step {row['step']}): {row.get('says', '')} {row.get('knob', '')}"
        for name, row in rows.items()
        if names is None or name in names
    ]


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
