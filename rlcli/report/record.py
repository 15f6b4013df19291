"""The files of a run as Python values: settings, metrics, rollouts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcli.errors import RlcliError
from rlcli.report.read import read_run
from rlcli.report.text import text_lines
from rlcli.report.write import REPORT_FILE
from rlcli.run_dir.checkpoint import saved_steps
from rlcli.run_dir.folder import RunDir
from rlcli.run_dir.metrics_file import read_metrics
from rlcli.run_dir.rollout_files import read_rollouts, rollout_file, step_of_file

if TYPE_CHECKING:
    import pandas  # pyright: ignore[reportMissingImports]

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run directory. Everything is read when it is asked for: a running run may have grown."""

    path: Path

    @property
    def state(self) -> str:
        """running, finished, preempted (stopped by a signal), paused, failed, killed or empty."""
        return RunDir(self.path).state()

    @property
    def status(self) -> Row:
        """status.json: "state", "step", "num_steps", "resumable", "reason"; {} without one."""
        return RunDir(self.path).status() or {}

    @property
    def step(self) -> int:
        """Training steps that are done."""
        return int(self.status.get("step", 0))

    @property
    def settings(self) -> Row:
        """Every setting by dotted key, such as "train.lr". Raises: RunDirError."""
        return RunDir(self.path).settings()

    @property
    def sources(self) -> dict[str, str]:
        """Where each setting came from. Raises: RlcliError."""
        file = self.path / "sources.json"
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RlcliError(f"{file} cannot be read: {error}") from None

    @property
    def metrics(self) -> list[dict[str, float]]:
        """One row for each training step, from "step" 1: "reward_mean", "policy_loss", ..."""
        return read_metrics(RunDir(self.path).metrics)[0]

    @property
    def evaluations(self) -> list[dict[str, float]]:
        """One row for each evaluation, before "step" 0 first: "eval/pass@1", ..."""
        return read_metrics(RunDir(self.path).metrics)[1]

    def rollouts(self, step: int | None = None) -> list[Row]:
        """Sampled responses with "prompt", "response", "reward", of one step or of all.

        Raises: RunDirError if the rollouts of this step are not kept.
        """
        if step is not None:
            return _rows_of(rollout_file(self.path, step))
        files = sorted((self.path / "rollouts").glob("step_*.jsonl"))
        return [row for file in files for row in _rows_of(file)]

    @property
    def model(self) -> Path | None:
        """The folder of the final model, or of the newest checkpoint; None before the first."""
        folder = RunDir(self.path).checkpoints
        if (folder / "final").is_dir():
            return folder / "final"
        steps = saved_steps(folder)
        return folder / f"step_{max(steps)}" if steps else None

    @property
    def report(self) -> Path | None:
        """The HTML report that the run wrote at its end."""
        file = self.path / REPORT_FILE
        return file if file.is_file() else None

    def metrics_frame(self) -> pandas.DataFrame:
        """`metrics` as a DataFrame, indexed by step. Raises: RlcliError without pandas."""
        return _frame(self.metrics, index="step")

    def evaluations_frame(self) -> pandas.DataFrame:
        """`evaluations` as a DataFrame, indexed by step. Raises: RlcliError without pandas."""
        return _frame(self.evaluations, index="step")

    def rollouts_frame(self, step: int | None = None) -> pandas.DataFrame:
        """`rollouts` as a DataFrame. Raises: RlcliError without pandas."""
        return _frame(self.rollouts(step))

    def settings_frame(self) -> pandas.DataFrame:
        """Columns "value" and "source", indexed by key. Raises: RlcliError without pandas."""
        sources = self.sources
        rows = [
            {"key": key, "value": value, "source": sources.get(key)}
            for key, value in self.settings.items()
        ]
        return _frame(rows, index="key")

    def __str__(self) -> str:
        """What `rlcli report` prints."""
        return "\n".join(text_lines([read_run(self.path)]))


def _rows_of(file: Path) -> list[Row]:
    step = step_of_file(file)
    return [{"step": step, **row} for row in read_rollouts(file)]


def _frame(rows: Sequence[Mapping[str, Any]], *, index: str | None = None) -> pandas.DataFrame:
    try:
        import pandas  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise RlcliError("pandas is not installed: pip install pandas") from None
    frame = pandas.DataFrame(rows)
    return frame.set_index(index) if index in frame.columns else frame
