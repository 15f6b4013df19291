"""What is wrong with a run, why, and which setting cures it: judged from its metrics alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlcli.config.schema import Config
from rlcli.monitor.health_checks import CHECKS, Verdict
from rlcli.monitor.held_out import HELD_OUT_FALLING, HeldOutScore, held_out_falling, read_score
from rlcli.monitor.judge_health_checks import JUDGE_CHECKS
from rlcli.monitor.trend import FIRST_KEPT, LAST_KEPT
from rlcli.run_dir.metrics_file import read_metrics, read_rows
from rlcli.types import StepRecord

HEALTH_FILE = "health.jsonl"

CLEAR_STEPS = 10
"""Steps without a verdict after which it counts as gone, so that a metric at the edge of its
range is not reported over and over."""


class Health:
    """The verdicts of a run as they arise: each once, and again only after it was gone."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._steps: list[StepRecord] = []
        self._active: dict[str, float] = {}
        self._scores: list[HeldOutScore] = []

    @property
    def active(self) -> frozenset[str]:
        """Names of the verdicts that hold now, or did in the last CLEAR_STEPS steps."""
        return frozenset(self._active)

    def after_evaluation(self, record: Mapping[str, float | None]) -> list[Verdict]:
        """New verdicts on the held-out score; `record` is an evaluation with its step."""
        score = read_score(_finite(record))
        if score is None:
            return []
        self._scores.append(score)
        found = held_out_falling(self._scores, self._steps, self._config)
        if found is None:
            self._active.pop(HELD_OUT_FALLING, None)
            return []
        is_new = found.name not in self._active
        self._active[found.name] = math.inf  # until an evaluation passes the check
        return [found] if is_new else []

    def replay(self, record: Mapping[str, float]) -> list[Verdict]:
        """New verdicts on a row of metrics.jsonl: a step if it has an epoch, else an evaluation."""
        if "epoch" not in record:
            return self.after_evaluation(record)
        return self.after(int(record["step"]), record)

    def after(
        self, step: int, record: Mapping[str, float | None], *, error: str = ""
    ) -> list[Verdict]:
        """What is newly wrong after `step` steps; error: why most of the unscored are that.

        A number that is none counts as absent.
        """
        self._steps.append({**_finite(record), "step": step})
        # the first steps are what later ones are compared with; memory must not grow with a run
        if len(self._steps) > FIRST_KEPT + LAST_KEPT:
            del self._steps[FIRST_KEPT]
        found = diagnose(self._steps, self._config)
        fresh = [verdict for verdict in found if verdict.name not in self._active]
        self._active |= {verdict.name: step for verdict in found}
        self._active = {k: last for k, last in self._active.items() if step - last < CLEAR_STEPS}
        return [_with_cause(verdict, error) for verdict in fresh]


def _finite(record: Mapping[str, float | None]) -> StepRecord:
    return {k: v for k, v in record.items() if v is not None and math.isfinite(v)}


def _with_cause(verdict: Verdict, error: str) -> Verdict:
    if verdict.name != "unscored" or not error:
        return verdict
    return replace(verdict, says=f"{verdict.says} Most often: {error.rstrip('.')}.")


def diagnose(steps: Sequence[StepRecord], config: Config) -> list[Verdict]:
    """Everything that is wrong after the last of these steps."""
    verdicts = [check(steps, config) for check in (*CHECKS, *JUDGE_CHECKS)]
    return [verdict for verdict in verdicts if verdict is not None]


class HealthLog:
    """The verdicts of a run in its health.jsonl: `{"step", "verdict", "says", "knob"}` a line.

    It never fails a run: what cannot be written is only told.
    """

    def __init__(self, run: Path, health: Health | None) -> None:
        self._file, self._metrics, self._health = run / HEALTH_FILE, run / "metrics.jsonl", health

    def begin(self, step: int) -> None:
        """Go on after `step` steps: later verdicts are of a course not taken."""
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
        """What to tell the user after a step, mostly nothing."""
        found = self._health.after(step, record, error=error) if self._health else []
        return self._note(step, found)

    def after_evaluation(self, step: int, record: Mapping[str, float | None]) -> list[str]:
        """Notes for the user after an evaluation, mostly none."""
        found = self._health.after_evaluation({**record, "step": step}) if self._health else []
        return self._note(step, found)

    def standing(self) -> list[str]:
        """The verdicts that still hold, as notes, each with the step that found it."""
        active = self._health.active if self._health else frozenset()
        return last_verdicts(self._file.parent, names=active)

    def _note(self, step: int, verdicts: Sequence[Verdict]) -> list[str]:
        notes: list[str] = []
        for found in verdicts:
            row = {"step": step, "verdict": found.name, "says": found.says, "knob": found.cure}
            with suppress(OSError), self._file.open("a", encoding="utf-8") as file:
                file.write(_line(row))
            notes.append(f"health: {found.says} {found.cure}")
        return notes


def in_order(
    steps: Sequence[Mapping[str, float]], evaluations: Sequence[Mapping[str, float]]
) -> list[Mapping[str, float]]:
    """Training steps and evaluations in the order they happened: a step, then its evaluation."""
    return sorted([*steps, *evaluations], key=lambda row: (row["step"], "epoch" not in row))


def last_verdicts(run: Path, names: frozenset[str] | None = None) -> list[str]:
    """One line for the newest row of each verdict in health.jsonl. names: only of these."""
    rows = {str(row.get("verdict")): row for row in read_rows(run / HEALTH_FILE)}
    return [
        f"health (step {row['step']}): {row.get('says', '')} {row.get('knob', '')}"
        for name, row in rows.items()
        if names is None or name in names
    ]


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
