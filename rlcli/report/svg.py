"""Positions of curves in a chart. The template draws them, readable without colour or mouse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

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
class Shape:
    """A path `d`, or a dot at `centre`. look: its CSS classes."""

    look: str
    d: str = ""
    centre: Point | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A chart's lines and labels. rows: (y, label). columns: (x, label). description: in words."""

    rows: Sequence[tuple[float, str]]
    columns: Sequence[tuple[float, str]]
    shapes: Sequence[Shape]
    description: str


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


def line_chart(series: Sequence[Series], *, percent: bool = False) -> Drawing:
    """Curves over the steps."""
    frame = _frame([point for curve in series for point in curve.points], percent=percent)
    drawn = [shape for curve in series for shape in _curve(curve, frame)]
    return _drawing(frame, drawn, series, percent=percent)


def area_chart(layers: Sequence[Series]) -> Drawing:
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
        Shape(
            f"area c{layer.colour % COLOURS}",
            d=f"{_path([*thinned(top), *reversed(thinned(floor))], frame)}Z",
        )
        for layer, floor, top in stacked
    ]
    return _drawing(frame, drawn, layers, percent=False)


def _frame(points: Sequence[Point], *, percent: bool) -> Frame:
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = min(ys), max(ys)
    if low >= 0 and (percent or low < high / 2):
        low = 0.0
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 0.5
    return Frame(min(xs), max(xs), low if low == 0 else low - pad, high + pad)


def _path(points: Sequence[Point], frame: Frame) -> str:
    return "M" + "L".join(f"{frame.x(x):g} {frame.y(y):g}" for x, y in points)


def _curve(curve: Series, frame: Frame) -> list[Shape]:
    points = thinned(curve.points)
    colour = f"c{curve.colour % COLOURS}"
    shapes = [Shape(f"line d{curve.dash % COLOURS} {colour}", d=_path(points, frame))]
    if curve.has_marks or len(points) == 1:
        dots = ((frame.x(x), frame.y(y)) for x, y in points)
        shapes += [Shape(f"mark {colour}", centre=dot) for dot in dots]
    return shapes


def _describe(curve: Series, *, percent: bool) -> str:
    (first, begin), (last, end) = curve.points[0], curve.points[-1]
    values = [y for _, y in curve.points]
    begin, end = number(begin, percent=percent), number(end, percent=percent)
    low, high = number(min(values), percent=percent), number(max(values), percent=percent)
    steps = f"step {first:g}" if first == last else f"steps {first:g} to {last:g}"
    return f"{curve.label}: {begin} to {end} over {steps}, lowest {low}, highest {high}"


def _drawing(
    frame: Frame, shapes: Sequence[Shape], series: Sequence[Series], *, percent: bool
) -> Drawing:
    whole = [x for x in ticks(frame.left, frame.right, 5) if x == int(x)]
    rows = ticks(frame.low, frame.high, 4)
    return Drawing(
        rows=[(frame.y(y), number(y, percent=percent)) for y in rows],
        columns=[(frame.x(x), number(x)) for x in whole],
        shapes=shapes,
        description="; ".join(_describe(curve, percent=percent) for curve in series),
    )
