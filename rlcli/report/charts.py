"""The charts of a report: their metrics and labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from rlcli.report.read import PASS, RunReport, clipped
from rlcli.report.svg import COLOURS, Drawing, Point, Series, Shape, area_chart, line_chart

MAX_PARTS = 12
ROUNDING = 1e-5
"""Differences of probabilities due to float32 rounding."""
LONGEST_LABEL = 60


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart of one or more metrics, each with its label in the legend.

    above: the chart is omitted if no value is larger.
    """

    title: str
    unit: str
    metrics: tuple[tuple[str, str], ...]
    percent: bool = False
    above: float | None = None


@dataclass(frozen=True, slots=True)
class Key:
    """One line of a legend: a sample of the curve, and its name."""

    label: str
    shapes: Sequence[Shape]


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart with its title and legend. number: unique in its page."""

    number: int
    title: str
    unit: str
    drawing: Drawing
    legend: Sequence[Key]


CHARTS = (
    Chart("Reward", "mean per rollout", (("reward_mean", "training"), (PASS, "held-out pass@1"))),
    Chart("KL to the reference", "nats per token", (("kl_divergence", "KL"),)),
    Chart("Entropy", "nats per token", (("entropy", "entropy"),)),
    Chart("Clip fraction", "share of tokens", (("clip_fraction", "clipped"),), percent=True),
    Chart("Response length", "tokens, mean", (("response_length_mean", "length"),)),
    Chart(
        "Cut by the length limit",
        "share of responses",
        (("truncated_share", "cut"),),
        percent=True,
        above=0.0,
    ),
    Chart(
        "Groups that score all alike",
        "share of groups",
        (("zero_variance_share", "alike"),),
        percent=True,
    ),
    Chart("Policy loss", "mean of mini-batches", (("policy_loss", "policy"),)),
    Chart("Value loss", "mean of mini-batches", (("value_loss", "critic"),)),
    Chart("Gradient norm", "before clipping", (("grad_norm", "policy"),)),
    Chart("Unscored", "rollouts per step", (("unscored", "unscored"),), above=0.0),
    Chart(
        "Sampler against trainer",
        "mean difference of probability",
        (("sampler/prob_gap", "gap"),),
        above=ROUNDING,
    ),
    Chart("Reward against length", "Pearson's r", (("reward_length_correlation", "r"),)),
    Chart(
        "Judge",
        "score from 0 to 1",
        (("judge/score_mean", "responses"), ("judge/canary_score", "known bad answers")),
    ),
    Chart("Judge calls", "seconds", (("judge/p50_s", "half within"), ("judge/p95_s", "95 %"))),
    Chart("Judge cost", "US dollars per step", (("judge/cost_usd", "cost"),)),
    Chart("Turns", "mean per episode", (("episode/turns_mean", "turns"),)),
    Chart(
        "Tokens of an episode",
        "mean",
        (("episode/tokens", "all"), ("episode/env_tokens", "of the environment")),
    ),
    Chart(
        "Tool calls",
        "per episode",
        (
            ("env/tool_calls", "made"),
            ("env/tool_errors", "failed"),
            ("env/parse_failures", "not readable"),
        ),
        above=0.0,
    ),
    Chart(
        "Cut after the last turn",
        "share of episodes",
        (("env/cut_by_turns", "cut"),),
        percent=True,
        above=0.0,
    ),
    Chart("Waiting for the environment", "seconds per step", (("env/wait_s", "slowest"),)),
    Chart("Failed environments", "episodes per step", (("env/failed", "failed"),), above=0.0),
    Chart("Speed", "sampled tokens per second", (("tokens_per_s", "speed"),)),
)
PHASES = (("time/sample_s", "sampling"), ("time/score_s", "scoring"))
REST = "learning and the rest"
AREA = "M4 0H24V12H4Z"


def charts(runs: Sequence[RunReport]) -> list[Figure]:
    """All charts that have data."""
    parts = sorted(
        {k for run in runs for row in run.steps[-1:] for k in row if k.startswith("reward/")}
    )
    own = [
        Chart(f"Reward part: {clipped(key[7:], LONGEST_LABEL)}", "mean", ((key, "part"),))
        for key in parts[:MAX_PARTS]
    ]
    wanted = (*CHARTS, *own)
    drawn = [_drawn(chart, runs, number) for number, chart in enumerate(wanted)]
    times = [_time(run, len(wanted) + i, of_many=len(runs) > 1) for i, run in enumerate(runs)]
    return [figure for figure in (*drawn, *times) if figure is not None]


def _drawn(chart: Chart, runs: Sequence[RunReport], number: int) -> Figure | None:
    series: list[Series] = []
    above = -inf if chart.above is None else chart.above
    for index, run in enumerate(runs):
        for place, (key, word) in enumerate(chart.metrics):
            points = _points(run, key)
            if any(y > above for _, y in points):
                label = clipped(run.name, LONGEST_LABEL) if len(runs) > 1 else word
                label += f", {word}" if len(runs) > 1 and len(chart.metrics) > 1 else ""
                colour = index if len(runs) > 1 else place
                series.append(
                    Series(
                        label=label,
                        points=points,
                        colour=colour,
                        dash=index,
                        has_marks=key in (PASS, "judge/canary_score"),
                    )
                )
    if not series:
        return None
    needs_legend = len(runs) > 1 or len(series) > 1
    legend = [_key(curve) for curve in series] if needs_legend else []
    drawing = line_chart(series, percent=chart.percent)
    return Figure(number, chart.title, chart.unit, drawing, legend)


def _points(run: RunReport, key: str) -> list[Point]:
    rows = run.evaluations if key.startswith("eval/") else run.steps
    return [(row["step"], row[key]) for row in rows if key in row]


def _time(run: RunReport, number: int, *, of_many: bool) -> Figure | None:
    """Seconds of a step by phase."""
    rows = [row for row in run.steps if "time/step_s" in row]
    if len(rows) < 2:
        return None
    layers = [[row.get(key, 0.0) for row in rows] for key, _ in PHASES]
    known = [sum(values) for values in zip(*layers, strict=True)]
    pairs = zip(rows, known, strict=True)
    layers.append([max(0.0, row["time/step_s"] - seconds) for row, seconds in pairs])
    words = [*(word for _, word in PHASES), REST]
    series = [
        Series(
            label=word,
            points=[(row["step"], y) for row, y in zip(rows, values, strict=True)],
            colour=colour,
        )
        for colour, (word, values) in enumerate(zip(words, layers, strict=True))
    ]
    title = f"Time by phase: {clipped(run.name, LONGEST_LABEL)}" if of_many else "Time by phase"
    legend = [Key(layer.label, [Shape(f"area {_hue(layer)}", AREA)]) for layer in series]
    return Figure(number, title, "seconds per step, stacked", area_chart(series), legend)


def _key(curve: Series) -> Key:
    shapes = [Shape(f"line d{curve.dash % COLOURS} {_hue(curve)}", "M1 6H27")]
    if curve.has_marks:
        shapes.append(Shape(f"mark {_hue(curve)}", centre=(14, 6)))
    return Key(curve.label, shapes)


def _hue(curve: Series) -> str:
    return f"c{curve.colour % COLOURS}"
