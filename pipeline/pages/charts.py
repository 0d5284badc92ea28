"""Charts as SVG for a page: they take its colours, grow and shrink with it, and need no script.

A chart is 320 units wide, about as many as a phone has pixels, so that its words stay readable there. The classes are
those of `assets/run_report.css`: `c0` to `c5` are the colours of series.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

COLOURS = 6
_WIDTH, _HEIGHT = 320, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 38, 8, 10, 30
_MOST_DOTS = 2000

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    name: str
    points: Sequence[Point]
    marked: Point | None = None
    """The one that is meant: drawn larger."""


@dataclass(frozen=True)
class _Axes:
    """Where values stand in the drawing."""

    x_ticks: Sequence[float]
    y_ticks: Sequence[float]

    def x(self, value: float) -> float:
        return _place(value, self.x_ticks[0], self.x_ticks[-1], _LEFT, _WIDTH - _RIGHT)

    def y(self, value: float) -> float:
        return _place(value, self.y_ticks[0], self.y_ticks[-1], _HEIGHT - _BOTTOM, _TOP)


def line_chart(series: Sequence[Series], *, title: str, x_label: str) -> Markup:
    """Lines over whole numbers such as epochs; each point tells its value when it is pointed at."""
    points = [point for line in series for point in line.points]
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    axes = _Axes(_whole_ticks(first, last), ticks(min(y for _, y in points), max(y for _, y in points)))
    drawn = [_draw_axes(axes, x_label)]
    for number, line in enumerate(series):
        colour = f"c{number % COLOURS}"
        path = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in line.points)
        drawn.append(Markup('<polyline class="line {}" points="{}"/>').format(colour, path))
        for x, y in line.points:
            marked = (x, y) == line.marked
            drawn.append(
                Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{}"><title>{}</title></circle>').format(
                    f"dot {colour} marked" if marked else f"dot {colour}",
                    axes.x(x),
                    axes.y(y),
                    5 if marked else 2.5,
                    f"{line.name}, {x_label} {x:g}: {y:.3f}" + (", kept" if marked else ""),
                )
            )
    return _svg(drawn, title)


def scatter_chart(dots: Sequence[Point], trend: Sequence[Point], *, title: str, x_label: str) -> Markup:
    """A dot for each of `dots`, of more than 2,000 every so manieth; through them the line `trend`."""
    everything = [*dots, *trend]
    axes = _Axes(
        ticks(min(x for x, _ in everything), max(x for x, _ in everything)), ticks(0, max(y for _, y in everything))
    )
    shown = dots[:: math.ceil(len(dots) / _MOST_DOTS)]
    path = "".join(f"M{axes.x(x):.1f} {axes.y(y):.1f}h0" for x, y in shown)
    drawn = [_draw_axes(axes, x_label), Markup('<path class="cloud" d="{}"/>').format(path)]
    line = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in trend)
    drawn.append(Markup('<polyline class="line c1" points="{}"/>').format(line))
    drawn += [
        Markup('<circle class="dot c1" cx="{:.1f}" cy="{:.1f}" r="4"/>').format(axes.x(x), axes.y(y)) for x, y in trend
    ]
    return _svg(drawn, title)


def interval_chart(value: float, low: float, high: float, *, least: float, most: float, colour: int) -> Markup:
    """A score and its interval as a dot on a line, on a scale from `least` to `most`."""
    x, start, end = (_place(number, least, most, 5, 115) for number in (value, low, high))
    return Markup(
        '<svg class="interval" viewBox="0 0 120 12" aria-hidden="true"><path class="rail" d="M2 6H118"/>'
        '<path class="line c{0}" d="M{1:.1f} 6H{2:.1f}"/><circle class="dot c{0}" cx="{3:.1f}" cy="6" r="4"/></svg>'
    ).format(colour % COLOURS, start, end, x)


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart), at and around `low` to `high`."""
    if high <= low:
        low, high = (low - 0.5, high + 0.5) if low == high else (high, low)
    rough = (high - low) / count
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
    return (start + end) / 2 if high == low else start + (value - low) / (high - low) * (end - start)


def _draw_axes(axes: _Axes, x_label: str) -> Markup:
    drawn = []
    for value in axes.y_ticks:
        drawn.append(
            Markup('<path class="grid" d="M{} {:.1f}H{}"/><text class="y" x="{}" y="{:.1f}">{:g}</text>').format(
                _LEFT, axes.y(value), _WIDTH - _RIGHT, _LEFT - 6, axes.y(value) + 4, value
            )
        )
    bottom = _HEIGHT - _BOTTOM + 14
    drawn += [Markup('<text x="{:.1f}" y="{}">{:g}</text>').format(axes.x(x), bottom, x) for x in axes.x_ticks]
    drawn.append(Markup('<text x="{}" y="{}">{}</text>').format((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 4, x_label))
    return Markup("").join(drawn)


def _svg(drawn: Sequence[Markup], title: str) -> Markup:
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        _WIDTH, _HEIGHT, escape(title), Markup("").join(drawn)
    )
