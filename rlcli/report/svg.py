"""Curves as inline SVG, readable without colour or mouse and by screen readers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from rlcli.report.markup import Markup, join, tag

WIDTH, HEIGHT = 400, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 12, 38
MAX_POINTS = 240
COLOURS = 6
Point = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One curve. colour and dash distinguish runs, `has_marks` two metrics of a run."""

    label: str
    points: Sequence[Point]
    colour: int = 0
    dash: int = 0
    has_marks: bool = False


@dataclass(frozen=True, slots=True)
class Frame:
    """Maps values to positions in the drawing."""

    left: float
    right: float
    low: float
    high: float

    def x(self, value: float) -> float:
        """Horizontal position of a step."""
        share = (value - self.left) / ((self.right - self.left) or 1.0)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        """Vertical position of a value."""
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)


def thinned(points: Sequence[Point]) -> list[Point]:
    """Average neighbours to at most MAX_POINTS points; keeps the first and last point."""
    if len(points) <= MAX_POINTS:
        return list(points)
    size = math.ceil((len(points) - 2) / (MAX_POINTS - 2))
    inner = points[1:-1]
    blocks = [inner[i : i + size] for i in range(0, len(inner), size)]
    means = [(fmean(x for x, _ in block), fmean(y for _, y in block)) for block in blocks]
    return [points[0], *means, points[-1]]


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers from `low` to `high`, about `count`."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    unit = next(size * power for size in (1, 2, 2.5, 5, 10) if size * power >= rough * 0.999)
    first = math.ceil(low / unit - 1e-9)
    return [i * unit for i in range(first, math.floor(high / unit + 1e-9) + 1)]


def number(value: float, *, percent: bool = False) -> str:
    """Three digits: `0.0123`, `1,230`, `1.2M`, `45.2%`."""
    if percent:
        return f"{value * 100:.3g}%"
    if abs(value) >= 1e6:
        return f"{value / 1e6:.3g}M" if abs(value) < 1e9 else f"{value:.2e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def line_chart(
    series: Sequence[Series], *, name: str, title: str, unit: str, percent: bool = False
) -> Markup:
    """Curves over the steps. name: an id that is unique in the page."""
    frame = _frame([point for curve in series for point in curve.points], percent=percent)
    drawn = [_curve(curve, frame) for curve in series]
    description = "; ".join(_describe(curve, percent=percent) for curve in series)
    return _drawing(
        frame, drawn, name=name, title=title, unit=unit, description=description, percent=percent
    )


def area_chart(layers: Sequence[Series], *, name: str, title: str, unit: str) -> Markup:
    """Layers on top of each other; all have points at the same steps."""
    steps = [x for x, _ in layers[0].points]
    below = [0.0] * len(steps)
    stacked: list[tuple[Series, list[Point], list[Point]]] = []
    for layer in layers:
        above = [base + y for base, (_, y) in zip(below, layer.points, strict=True)]
        floor = list(zip(steps, below, strict=True))
        stacked.append((layer, floor, list(zip(steps, above, strict=True))))
        below = above
    frame = _frame([*zip(steps, below, strict=True), (steps[0], 0.0)], percent=False)
    drawn = [
        tag(
            "path",
            d=f"{_path([*thinned(top), *reversed(thinned(floor))], frame)}Z",
            class_=f"area c{layer.colour % COLOURS}",
        )
        for layer, floor, top in stacked
    ]
    description = "; ".join(_describe(layer, percent=False) for layer in layers)
    return _drawing(
        frame, drawn, name=name, title=title, unit=unit, description=description, percent=False
    )


def _frame(points: Sequence[Point], *, percent: bool) -> Frame:
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = min(ys), max(ys)
    if low >= 0 and (percent or low < high / 2):
        low = 0.0
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 0.5
    return Frame(min(xs), max(xs), low if low == 0 else low - pad, high + pad)


def _path(points: Sequence[Point], frame: Frame) -> str:
    return "M" + "L".join(f"{frame.x(x):g} {frame.y(y):g}" for x, y in points)


def _curve(curve: Series, frame: Frame) -> Markup:
    points = thinned(curve.points)
    colour = f"c{curve.colour % COLOURS}"
    parts = [tag("path", d=_path(points, frame), class_=f"line d{curve.dash % COLOURS} {colour}")]
    if curve.has_marks or len(points) == 1:
        parts += [
            tag("circle", cx=frame.x(x), cy=frame.y(y), r=3.5, class_=f"mark {colour}")
            for x, y in points
        ]
    return join(*parts)


def _describe(curve: Series, *, percent: bool) -> str:
    (first, begin), (last, end) = curve.points[0], curve.points[-1]
    values = [y for _, y in curve.points]
    begin, end = number(begin, percent=percent), number(end, percent=percent)
    low, high = number(min(values), percent=percent), number(max(values), percent=percent)
    steps = f"step {first:g}" if first == last else f"steps {first:g} to {last:g}"
    return f"{curve.label}: {begin} to {end} over {steps}, lowest {low}, highest {high}"


def _drawing(
    frame: Frame,
    drawn: Sequence[Markup],
    *,
    name: str,
    title: str,
    unit: str,
    description: str,
    percent: bool,
) -> Markup:
    bottom = HEIGHT - BOTTOM
    rows = [
        join(
            tag("path", d=f"M{LEFT} {frame.y(y):g}H{WIDTH - RIGHT}", class_="grid"),
            tag(
                "text",
                number(y, percent=percent),
                x=LEFT - 6,
                y=frame.y(y) + 4,
                class_="tick end",
            ),
        )
        for y in ticks(frame.low, frame.high, 4)
    ]
    whole = [x for x in ticks(frame.left, frame.right, 5) if x == int(x)]
    columns = [
        tag("text", number(x), x=frame.x(x), y=bottom + 16, class_="tick middle") for x in whole
    ]
    return tag(
        "svg",
        tag("title", f"{title}, {unit}", id=f"{name}-t"),
        tag("desc", description, id=f"{name}-d"),
        *rows,
        *columns,
        tag("path", d=f"M{LEFT} {bottom}H{WIDTH - RIGHT}", class_="axis"),
        tag("text", "step", x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 4, class_="tick middle"),
        *drawn,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_labelledby=f"{name}-t {name}-d",
    )
