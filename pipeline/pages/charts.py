"""Charts as places in a drawing, which `assets/drawings.html` turns into SVG without any script.

A chart is 320 units wide, about as many as a phone has pixels, so that its words stay readable there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

COLOURS = 6
"""Of series: `--c0` to `--c5` of the style sheet."""

_MOST_DOTS = 2000

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line of a chart, in the units of the data."""

    name: str
    points: Sequence[Point]
    marked: Point | None = None
    """The one that matters: drawn larger."""


@dataclass(frozen=True)
class Dot:
    """A dot of a line."""

    x: float
    y: float
    radius: float
    title: str = ""
    """Shown when it is pointed at."""
    is_marked: bool = False


@dataclass(frozen=True)
class ChartLine:
    """A line through dots."""

    colour: int
    dots: Sequence[Dot]


@dataclass(frozen=True)
class Chart:
    """What is drawn, and where; all places are in units of the drawing, x to the right and y down."""

    title: str
    x_label: str
    x_ticks: Sequence[tuple[float, str]]
    """Place and label."""
    y_ticks: Sequence[tuple[float, str]]
    lines: Sequence[ChartLine]
    cloud: Sequence[Point] = ()
    """Small dots under the lines."""

    width: ClassVar[int] = 320
    height: ClassVar[int] = 200
    left: ClassVar[int] = 38
    right: ClassVar[int] = 312
    top: ClassVar[int] = 10
    bottom: ClassVar[int] = 170


@dataclass(frozen=True)
class Interval:
    """A score and its interval as places on a rail 120 units long."""

    value: float
    low: float
    high: float
    colour: int


@dataclass(frozen=True)
class _Axes:
    """Maps values to places in the drawing."""

    x_values: Sequence[float]
    y_values: Sequence[float]

    def place(self, point: Point) -> Point:
        return (
            _place(point[0], self.x_values[0], self.x_values[-1], Chart.left, Chart.right),
            _place(point[1], self.y_values[0], self.y_values[-1], Chart.bottom, Chart.top),
        )

    def x_ticks(self) -> list[tuple[float, str]]:
        return [(self.place((value, self.y_values[0]))[0], f"{value:g}") for value in self.x_values]

    def y_ticks(self) -> list[tuple[float, str]]:
        return [(self.place((self.x_values[0], value))[1], f"{value:g}") for value in self.y_values]


def line_chart(series: Sequence[Series], *, title: str, x_label: str) -> Chart:
    """Lines over whole numbers such as epochs; each point shows its value when it is pointed at."""
    points = [point for line in series for point in line.points]
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    axes = _Axes(_whole_ticks(first, last), ticks(min(y for _, y in points), max(y for _, y in points)))
    lines = []
    for number, line in enumerate(series):
        dots = []
        for point in line.points:
            is_marked = point == line.marked
            shown = f"{line.name}, {x_label} {point[0]:g}: {point[1]:.3f}" + (", kept" if is_marked else "")
            dots.append(Dot(*axes.place(point), 5 if is_marked else 2.5, shown, is_marked))
        lines.append(ChartLine(number % COLOURS, dots))
    return Chart(title, x_label, axes.x_ticks(), axes.y_ticks(), lines)


def scatter_chart(dots: Sequence[Point], trend: Sequence[Point], *, title: str, x_label: str) -> Chart:
    """A dot for each of `dots`, of more than 2,000 for every n-th; through them the line `trend`."""
    everything = [*dots, *trend]
    axes = _Axes(
        ticks(min(x for x, _ in everything), max(x for x, _ in everything)), ticks(0, max(y for _, y in everything))
    )
    shown = dots[:: math.ceil(len(dots) / _MOST_DOTS)]
    line = ChartLine(1, [Dot(*axes.place(point), 4) for point in trend])
    return Chart(title, x_label, axes.x_ticks(), axes.y_ticks(), [line], [axes.place(dot) for dot in shown])


def interval_chart(value: float, low: float, high: float, *, least: float, most: float, colour: int) -> Interval:
    """A score and its interval, on a scale from `least` to `most`."""
    x, start, end = (_place(number, least, most, 5, 115) for number in (value, low, high))
    return Interval(x, start, end, colour % COLOURS)


def ticks(low: float, high: float) -> list[float]:
    """About four round numbers (1, 2 or 5 times a power of ten apart), at and around `low` to `high`."""
    if high <= low:
        low, high = (low - 0.5, high + 0.5) if low == high else (high, low)
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    start, stop = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(start, stop + 1)]


def _whole_ticks(first: float, last: float) -> list[float]:
    """Whole numbers; the ends are those of the data, so that no room is left beside the lines."""
    step = max(1, round((last - first) / 6))
    inner = [float(number) for number in range(int(first), int(last) + 1, step)]
    if 0 < last - inner[-1] < 0.75 * step and len(inner) > 1:
        inner.pop()
    return [*inner, last] if inner[-1] < last else inner


def _place(value: float, low: float, high: float, start: float, end: float) -> float:
    """Where `value` of the range `low` to `high` stands between `start` and `end`, to a tenth."""
    return round((start + end) / 2 if high == low else start + (value - low) / (high - low) * (end - start), 1)
