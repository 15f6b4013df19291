"""A run as its files tell it, whatever state they are in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlcli.config.resolved import show
from rlcli.config.schema import defaults
from rlcli.data.sets import val_name
from rlcli.errors import RunDirError
from rlcli.monitor.health import HEALTH_FILE, Health, in_order
from rlcli.run_dir.checkpoint import saved_steps
from rlcli.run_dir.folder import RunDir
from rlcli.run_dir.metrics_file import read_metrics, read_rows
from rlcli.run_dir.rollout_files import Which, pick, read_rollouts, step_of_file
from rlcli.system.disk import folder_bytes

PICKS: tuple[Which, ...] = ("best", "worst", "zero", "truncated")
PASS = "eval/pass@1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting of a run, as a user would type it."""

    key: str
    value: str
    origin: str
    default: str | None

    @property
    def is_changed(self) -> bool:
        """Whether it is not at its default."""
        return self.value != self.default


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A rollout worth reading: `why` it was picked, from which step."""

    step: int
    why: str
    row: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Something on disk. score: the held-out one of a checkpoint's step."""

    name: str
    size: int
    score: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """Everything a report says of one run. verdicts: `{"step", "verdict", "says", "knob"}`."""

    name: str
    path: Path
    state: str
    reason: str
    step: int
    num_steps: int | None
    settings: Sequence[Setting]
    steps: Sequence[Mapping[str, float]]
    evaluations: Sequence[Mapping[str, float]]
    verdicts: Sequence[Mapping[str, Any]]
    samples: Sequence[Sample]
    checkpoints: Sequence[Stored]
    files: Sequence[Stored]

    def setting(self, key: str, default: str = "?") -> str:
        """The value of a dotted key."""
        return next((s.value for s in self.settings if s.key == key), default)

    @property
    def val_name(self) -> str:
        """A short name for the validation data."""
        train, val = (
            [
                name
                for name in self.setting(key, "").strip("[]").replace('"', "").split(", ")
                if name
            ]
            for key in ("data.train", "data.val")
        )
        return val_name(train, val)

    @property
    def scores(self) -> list[float]:
        """Held-out pass@1, in order."""
        return [row[PASS] for row in self.evaluations if PASS in row]

    def values(self, key: str) -> list[float]:
        """A metric over the training steps that have it."""
        return [row[key] for row in self.steps if key in row]

    @property
    def wall_s(self) -> float:
        """Seconds of its steps and evaluations."""
        return sum(self.values("time/step_s")) + sum(
            row.get("time/eval_s", 0.0) for row in self.evaluations
        )

    @property
    def tokens_per_s(self) -> float | None:
        """Sampled tokens per second of step, over the whole run."""
        timed = [r for r in self.steps if {"tokens_per_s", "time/step_s"} <= r.keys()]
        seconds = sum(row["time/step_s"] for row in timed)
        sampled = sum(row["tokens_per_s"] * row["time/step_s"] for row in timed)
        return sampled / seconds if seconds > 0 else None


def clipped(text: str, limit: int) -> str:
    """At most `limit` characters, saying how many are missing."""
    more = len(text) - limit
    return text if more <= 0 else f"{text[:limit]} ... ({more:,} more characters)"


def read_run(path: Path) -> RunReport:
    """What the files of a run directory say; what is missing or broken is left out."""
    run = RunDir(path)
    status = run.status() or {}
    steps, evaluations = read_metrics(run.metrics)
    scores = {int(row["step"]): row.get(PASS) for row in evaluations}
    last = int(steps[-1]["step"]) if steps else 0
    num_steps = status.get("num_steps")
    return RunReport(
        name=path.resolve().name,
        path=path,
        state=run.state(),
        reason=str(status.get("reason") or ""),
        step=_whole(status.get("step"), last),
        num_steps=_whole(num_steps, 0) or None,
        settings=_settings(path),
        steps=steps,
        evaluations=evaluations,
        verdicts=_verdicts(run, in_order(steps, evaluations)),
        samples=_samples(path / "rollouts"),
        checkpoints=_checkpoints(run.checkpoints, scores),
        files=_files(path),
    )


def read_runs(paths: Sequence[Path]) -> list[RunReport]:
    """The runs, each once, under names that tell them apart."""
    unique: dict[Path, Path] = {}
    for path in paths:
        unique.setdefault(path.resolve(), path)
    runs = [read_run(path) for path in unique.values()]
    names = [run.name for run in runs]
    return [run if names.count(run.name) == 1 else replace(run, name=str(run.path)) for run in runs]


def _whole(value: Any, default: int) -> int:
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return value if is_count else default


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _settings(run: Path) -> list[Setting]:
    known = defaults()
    sources = _read_object(run / "sources.json")
    return [
        Setting(
            key=key,
            value=_typed(value),
            origin=str(sources.get(key, "unknown")),
            default=_typed(known[key]) if key in known else None,
        )
        for key, value in _flat(_read_object(run / "config.json"), "", known)
    ]


def _flat(values: Mapping[str, Any], prefix: str, known: Mapping[str, Any]) -> list[Any]:
    """(dotted key, value): a setting may itself be a mapping."""
    found: list[Any] = []
    for name, value in values.items():
        key = f"{prefix}{name}"
        is_section = isinstance(value, dict) and key not in known
        found += _flat(value, f"{key}.", known) if is_section else [(key, value)]
    return found


def _typed(value: Any) -> str:
    if isinstance(value, (list, dict)):
        return json.dumps(value, ensure_ascii=False)
    return show(value)


def _verdicts(run: RunDir, rows: Sequence[Mapping[str, float]]) -> list[dict[str, Any]]:
    """What the run said of its health, or what can be said where it was not asked."""
    file = run.path / HEALTH_FILE
    if file.is_file():
        return [
            {"step": int(row["step"])}
            | {k: str(row.get(k, "")) for k in ("verdict", "says", "knob")}
            for row in read_rows(file)
        ]
    try:
        health = Health(run.config())
    except RunDirError:
        return []
    return [
        {"step": int(row["step"]), "verdict": found.name, "says": found.says, "knob": found.cure}
        for row in rows
        for found in health.replay(row)
    ]


def _samples(folder: Path) -> list[Sample]:
    """Of the first and the last step: one of each kind, no rollout twice."""
    files = sorted(path for path in folder.glob("step_*.jsonl") if path.stem[5:].isdigit())
    found: list[Sample] = []
    for file in files[:1] + files[1:][-1:]:
        try:
            rows = read_rollouts(file)
        except OSError:
            continue
        picked: dict[int, list[str]] = {}
        for which in PICKS:
            for row in pick(rows, which)[:1]:
                picked.setdefault(row["row"], []).append(which)
        for row in [row for row in rows if row.get("reward") is None][:1]:
            picked.setdefault(row["row"], []).append("unscored")
        by_number = {row["row"]: row for row in rows}
        found += [
            Sample(step=step_of_file(file), why=", ".join(why), row=by_number[number])
            for number, why in picked.items()
        ]
    return found


def _checkpoints(folder: Path, scores: Mapping[int, float | None]) -> list[Stored]:
    found = [(f"step_{step}", scores.get(step)) for step in saved_steps(folder)]
    if (folder / "final").is_dir():
        found.append(("final", scores.get(max(scores, default=0))))
    return [Stored(name=name, size=folder_bytes(folder / name), score=s) for name, s in found]


def _files(run: Path) -> list[Stored]:
    """What lies in the run directory, the largest first."""
    found = [
        Stored(name=f"{path.name}/", size=folder_bytes(path))
        if path.is_dir()
        else Stored(name=path.name, size=path.stat().st_size)
        for path in run.iterdir()
        if not path.is_symlink()
    ]
    return sorted(found, key=lambda stored: -stored.size)
