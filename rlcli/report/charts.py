"""The charts of a report: their metrics and labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from rlcli.report.markup import Markup, clipped, join, tag
from rlcli.report.read import PASS, RunReport
from rlcli.report.svg import COLOURS, Point, Series, area_chart, line_chart

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
    Chart("Speed", "sampled tokens per second", (("tokens_per_s", "speed"),)),
)
PHASES = (("time/sample_s", "sampling"), ("time/score_s", "scoring"))
REST = "learning and the rest"


def charts(runs: Sequence[RunReport]) -> list[Markup]:
    """All charts that have data."""
    parts = sorted(
        {k for run in runs for row in run.steps[-1:] for k in row if k.startswith("reward/")}
    )
    own = [
        Chart(f"Reward part: {clipped(key[7:], LONGEST_LABEL)}", "mean", ((key, "part"),))
        for key in parts[:MAX_PARTS]
    ]
    drawn = [_drawn(chart, runs, f"c{i}") for i, chart in enumerate((*CHARTS, *own))]
    times = [_time(run, f"t{i}", of_many=len(runs) > 1) for i, run in enumerate(runs)]
    return [figure for figure in (*drawn, *times) if figure is not None]


def _drawn(chart: Chart, runs: Sequence[RunReport], name: str) -> Markup | None:
    series: list[Series] = []
    above = -inf if chart.above is None else chart.above
    for number, run in enumerate(runs):
        for place, (key, word) in enumerate(chart.metrics):
            points = _points(run, key)
            if any(y > above for _, y in points):
                label = clipped(run.name, LONGEST_LABEL) if len(runs) > 1 else word
                label += f", {word}" if len(runs) > 1 and len(chart.metrics) > 1 else ""
                colour = number if len(runs) > 1 else place
                series.append(
                    Series(
                        label=label,
                        points=points,
                        colour=colour,
                        dash=number,
                        has_marks=key in (PASS, "judge/canary_score"),
                    )
                )
    if not series:
        return None
    unit = chart.unit
    drawing = line_chart(series, name=name, title=chart.title, unit=unit, percent=chart.percent)
    needs_legend = len(runs) > 1 or len(series) > 1
    return _figure(drawing, chart.title, unit, series if needs_legend else [])


def _points(run: RunReport, key: str) -> list[Point]:
    rows = run.evaluations if key.startswith("eval/") else run.steps
    return [(row["step"], row[key]) for row in rows if key in row]


def _time(run: RunReport, name: str, *, of_many: bool) -> Markup | None:
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
    unit = "seconds per step, stacked"
    drawing = area_chart(series, name=name, title=title, unit=unit)
    return _figure(drawing, title, unit, series, is_area=True)


def _figure(
    drawing: Markup, title: str, unit: str, series: Sequence[Series], *, is_area: bool = False
) -> Markup:
    legend = None
    if series:
        legend = tag("ul", *(_key(s, is_area=is_area) for s in series), class_="legend")
    caption = tag("figcaption", tag("b", title), " ", tag("span", unit, class_="dim"))
    return tag("figure", caption, drawing, legend)


def _key(series: Series, *, is_area: bool) -> Markup:
    """One legend entry: line style and label."""
    colour = f"c{series.colour % COLOURS}"
    parts = [tag("path", d="M1 6H27", class_=f"line d{series.dash % COLOURS} {colour}")]
    if series.has_marks:
        parts.append(tag("circle", cx=14, cy=6, r=3.5, class_=f"mark {colour}"))
    if is_area:
        parts = [tag("path", d="M4 0H24V12H4Z", class_=f"area {colour}")]
    sample = tag("svg", *parts, viewBox="0 0 28 12", width=28, height=12, aria_hidden="true")
    return tag("li", sample, " ", join(series.label))
