"""The report in a terminal, and as plain values for scripts."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from rlcli.monitor.console import duration, sparkline
from rlcli.report.read import RunReport
from rlcli.report.svg import number
from rlcli.run_dir.folder import in_words
from rlcli.run_dir.rollout_files import printable
from rlcli.system.disk import gib
from rlcli.terminal.i18n import width

BARS = 40
COURSES = (
    ("reward_mean", "reward"),
    ("kl_divergence", "KL"),
    ("entropy", "entropy"),
    ("clip_fraction", "clip fraction"),
    ("response_length_mean", "length"),
)


def text_lines(runs: Sequence[RunReport], columns: int = 80) -> list[str]:
    """All runs in lines of at most `columns`, a blank line between two."""
    lines: list[str] = []
    for run in runs:
        told = [part for line in _run_lines(run) for part in _wrapped(line, columns)]
        lines += [*([""] if lines else []), *told]
    return lines


def _run_lines(run: RunReport) -> list[str]:
    of = f"/{run.num_steps}" if run.num_steps else ""
    reason = f" ({run.reason.splitlines()[0]})" if run.reason else ""
    took = f", {duration(run.wall_s)}" if run.wall_s else ""
    value = run.setting
    lines = [f"{run.name}: {in_words(run.state)}{reason}, step {run.step}{of}{took}"]
    if run.settings:
        lines.append(f"  {value('algorithm.name')} on {value('model.path')}")
    if run.scores:
        first, last = run.scores[0], run.scores[-1]
        lines.append(f"  {'pass@1':<14}{first:>8.1%} -> {last:<8.1%}held out: {run.val_name}")
    for key, word in COURSES:
        values = run.values(key)
        if values:
            ends = f"{number(values[0]):>8} -> {number(values[-1]):<8}"
            lines.append(f"  {word:<14}{ends}{sparkline(_few(values))}")
    if run.tokens_per_s:
        lines.append(f"  {'speed':<14}{number(run.tokens_per_s):>8} tokens/s")
    lines += [f"  step {v['step']}: {v['says']} {v['knob']}" for v in run.verdicts]
    if run.steps and not run.verdicts:
        lines.append("  health: nothing to report")
    saved = ", ".join(stored.name for stored in run.checkpoints) or "none"
    size = gib(sum(stored.size for stored in run.files))
    return [*lines, f"  checkpoints: {saved}; {size} on disk"]


def _few(values: Sequence[float]) -> list[float]:
    """At most BARS values, evenly spaced, with the last."""
    count = min(BARS, len(values))
    return [values[(i + 1) * len(values) // count - 1] for i in range(count)]


def _wrapped(line: str, columns: int) -> list[str]:
    """The line in pieces that fit; a Chinese character takes two columns."""
    shown = printable(line).replace("\n", " ")
    if width(shown) <= columns:
        return [shown]
    room = columns if width(shown) == len(shown) else columns // 2
    return textwrap.wrap(shown, max(20, room), subsequent_indent="    ")


def to_json(run: RunReport) -> dict[str, Any]:
    """The run as plain values, the contract of `rlcli report --json`."""
    rewards = run.values("reward_mean")
    return {
        "run": run.name,
        "path": str(run.path),
        "state": run.state,
        "reason": run.reason,
        "step": run.step,
        "num_steps": run.num_steps,
        "algorithm": run.setting("algorithm.name", "") or None,
        "model": run.setting("model.path", "") or None,
        "before": run.scores[0] if run.scores else None,
        "after": run.scores[-1] if run.scores else None,
        "best": max(run.scores, default=None),
        "reward_first": rewards[0] if rewards else None,
        "reward_last": rewards[-1] if rewards else None,
        "wall_s": round(run.wall_s, 3),
        "tokens_per_s": run.tokens_per_s,
        "verdicts": [dict(verdict) for verdict in run.verdicts],
        "checkpoints": [
            {"name": s.name, "bytes": s.size, "pass@1": s.score} for s in run.checkpoints
        ],
        "bytes": sum(stored.size for stored in run.files),
        "settings": {s.key: s.value for s in run.settings if s.is_changed},
    }
