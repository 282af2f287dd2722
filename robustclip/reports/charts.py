"""Line charts as SVG: inside an HTML page, whose style comes from `base.html`, or as files of their own; and
shares as bars, in HTML for a notebook.

Curves differ in color and in their dashes, and a sentence says where each begins and ends: a chart can be
read without colors, and by a screen reader.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from robustclip.reports.html import render

WIDTH, HEIGHT = 440, 220
LEFT, RIGHT, TOP, BOTTOM = 52, WIDTH - 14, 14, HEIGHT - 40

_COLORS, _DASHES = 6, 3
_MARKED = 12  # a curve of at most so many points shows where they are


class Curve(NamedTuple):
    """A named line of points (across, up); None or NaN where nothing was measured."""

    name: str
    points: Sequence[tuple[float, float | None]]


def chart(title: str, curves: Sequence[Curve], *, across: str, percent: bool = False) -> str:
    """A figure of curves with axes, the line at 0 and a legend. Empty for curves without a finite value.

    `across` names the horizontal axis.
    """
    return _drawn("chart.html", title, curves, across, percent)


def chart_file(title: str, curves: Sequence[Curve], *, across: str) -> str:
    """The same as an SVG file, its legend below the axes, on white: a file can't know what surrounds it."""
    return _drawn("chart.svg", title, curves, across, False)


class _Frame(NamedTuple):
    """What the axes span."""

    low: float
    high: float
    first: float
    last: float
    percent: bool

    def right(self, x: float) -> float:
        return LEFT + (RIGHT - LEFT) * (x - self.first) / ((self.last - self.first) or 1)

    def down(self, y: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (y - self.low) / (self.high - self.low)

    def text(self, value: float) -> str:
        return f"{value:.0%}" if self.percent else f"{value:.3g}"


def _drawn(template: str, title: str, curves: Sequence[Curve], across: str, percent: bool) -> str:
    finite = [
        (curve.name, [(x, y) for x, y in curve.points if y is not None and math.isfinite(y)])
        for curve in curves
    ]
    measured = [(name, points) for name, points in finite if points]
    if not measured:
        return ""
    values = [y for _, points in measured for _, y in points]
    low, high = (0.0, 1.0) if percent else (min(0.0, *values), max(0.0, *values))
    places = [x for curve in curves for x, _ in curve.points]
    frame = _Frame(low, high if high > low else low + 1, min(places), max(places), percent)
    zero = frame.down(0)
    return render(
        template,
        title=title,
        across=across,
        lines=[_line(number, *curve, frame, across) for number, curve in enumerate(measured)],
        frame=frame,
        zero=f"{zero:.1f}",
        heights=[
            (f"{frame.down(value) + 4:.1f}", frame.text(value))
            for value in sorted({frame.low, 0.0, frame.high})
            if value == 0 or abs(frame.down(value) - zero) > 12
        ],
        marked=_MARKED,
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        right=RIGHT,
        top=TOP,
        bottom=BOTTOM,
    )


def _line(
    number: int, name: str, points: Sequence[tuple[float, float]], frame: _Frame, across: str
) -> dict[str, Any]:
    """A curve as it is drawn: its classes of the style, its points, and its ends in words."""
    (first, begin), (last, end) = points[0], points[-1]
    return {
        "name": name,
        "look": f"colour-{number % _COLORS} dash-{number % _DASHES}",
        "points": [(f"{frame.right(x):.1f}", f"{frame.down(y):.1f}") for x, y in points],
        "words": f"{name}: {frame.text(begin)} at {first:g}, {frame.text(end)} at {last:g} ({across}).",
    }


class Bar(NamedTuple):
    """One row: what it is, how much of 1 it has, and that in words."""

    label: str
    share: float
    words: str


def bars(title: str, rows: Sequence[Bar]) -> str:
    """A table with a bar a row, drawn in the text's own color."""
    widths = [f"{100 * min(max(row.share, 0), 1):.1f}%" for row in rows]
    return render("bars.html", title=title, rows=list(zip(rows, widths, strict=True)))
