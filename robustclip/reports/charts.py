"""Line charts as inline SVG, for pages that need nothing else, or as files. A page that holds one inline
holds `STYLE`, too.

Curves differ in colour and in their dashes, and a sentence says where each begins and ends: nobody has to see
colours, or to see.
"""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 440, 220
LEFT, RIGHT, TOP, BOTTOM = 52, WIDTH - 14, 14, HEIGHT - 40
STYLE = """
.chart { margin: 0 0 1.5rem; max-width: 34rem }
.chart > figcaption { font-weight: 600 }
.chart svg { display: block; width: 100%; height: auto; font-size: 13px; fill: currentColor }
.chart .axis { fill: none; stroke: currentColor; stroke-opacity: .45 }
.chart .curve { fill: none; stroke: var(--curve); stroke-width: 2; stroke-linejoin: round }
.chart .point { fill: var(--curve) }
.legend { list-style: none; margin: .25rem 0 0; padding: 0; display: flex; flex-wrap: wrap; gap: .1rem \
1.1rem; font-size: .9rem }
.swatch { display: inline-block; width: 1.6em; margin-right: .4em; border-top: 3px solid var(--curve); \
vertical-align: .25em }
.dash-1 { stroke-dasharray: 7 4; border-top-style: dashed } .dash-2 { stroke-dasharray: 2 4; \
border-top-style: dotted }
.colour-0 { --curve: #1565c0 } .colour-1 { --curve: #c62828 } .colour-2 { --curve: #2e7d32 }
.colour-3 { --curve: #6a1b9a } .colour-4 { --curve: #a15c00 } .colour-5 { --curve: #00707a }
@media (prefers-color-scheme: dark) {
.colour-0 { --curve: #7db4ff } .colour-1 { --curve: #ff8a80 } .colour-2 { --curve: #81c995 }
.colour-3 { --curve: #d7aefb } .colour-4 { --curve: #fdc069 } .colour-5 { --curve: #6fd3dc } }
"""

_LIGHT = STYLE.partition("@media")[0]
_COLOURS, _DASHES = 6, 3
_MARKED = 12  # a curve of so few points shows where they are


class Curve(NamedTuple):
    """A named line of points (across, up); None or NaN where nothing was measured."""

    name: str
    points: Sequence[tuple[float, float | None]]


def chart(title: str, curves: Sequence[Curve], *, across: str, percent: bool = False) -> str:
    """A figure of curves with axes, the line at 0 and a legend; all text is escaped. Nothing for curves
    without a single finite value.

    `across` names the horizontal axis.
    """
    drawn = _drawn(title, curves, across=across, percent=percent)
    if drawn is None:
        return ""
    legend = "".join(
        f'<li><span class="swatch {look}"></span>{escape(name)}</li>' for name, look in drawn.looks
    )
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption><svg role="img" viewBox="0 0 '
        f'{WIDTH} {HEIGHT}">'
        f'{drawn.inside}</svg><ul class="legend">{legend}</ul></figure>'
    )


def chart_file(title: str, curves: Sequence[Curve], *, across: str) -> str:
    """The same as an SVG file, its legend below the axes, on white: whoever shows a file may not tell it what
    colours surround it.
    """
    drawn = _drawn(title, curves, across=across, percent=False)
    if drawn is None:
        return ""
    legend = "".join(
        f'<text class="point {look}" x="{LEFT}" y="{HEIGHT + 16 * number + 12}">{escape(name)}</text>'
        for number, (name, look) in enumerate(drawn.looks)
    )
    high = HEIGHT + 16 * len(drawn.looks) + 8
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" role="img" viewBox="0 0 {WIDTH} {high}" '
        f'width="{WIDTH}" height="{high}" '
        'style="color: #222; background: #fff; fill: currentColor; font: 13px system-ui, sans-serif">'
        f"<style>{_LIGHT}</style>{drawn.inside}{legend}</svg>\n"
    )


class _Drawn(NamedTuple):
    """Axes and curves with their words; names and looks of the curves."""

    inside: str
    looks: list[tuple[str, str]]


def _drawn(title: str, curves: Sequence[Curve], *, across: str, percent: bool) -> _Drawn | None:
    measured = [
        (curve.name, [(x, y) for x, y in curve.points if y is not None and math.isfinite(y)])
        for curve in curves
    ]
    measured = [(name, points) for name, points in measured if points]
    if not measured:
        return None
    values = [y for _, points in measured for _, y in points]
    low, high = (0.0, 1.0) if percent else (min(0.0, *values), max(0.0, *values))
    places = [x for curve in curves for x, _ in curve.points]
    frame = _Frame(low, high if high > low else low + 1, min(places), max(places), percent)
    looks = [f"colour-{number % _COLOURS} dash-{number % _DASHES}" for number in range(len(measured))]
    drawn = "".join(_line(points, look, frame) for (_, points), look in zip(measured, looks, strict=True))
    told = " ".join(_told(name, points, frame, across) for name, points in measured)
    inside = f"<title>{escape(title)}</title><desc>{escape(told)}</desc>{_axes(frame, across)}{drawn}"
    return _Drawn(inside, [(name, look) for (name, _), look in zip(measured, looks, strict=True)])


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


def _axes(frame: _Frame, across: str) -> str:
    zero = frame.down(0)
    heights = [
        value
        for value in sorted({frame.low, 0.0, frame.high})
        if value == 0 or abs(frame.down(value) - zero) > 12
    ]
    return "".join(
        [
            f'<path class="axis" d="M{LEFT} {TOP}V{BOTTOM}M{LEFT} {zero:.1f}H{RIGHT}"/>',
            *(
                f'<text x="{LEFT - 6}" y="{frame.down(value) + 4:.1f}" '
                f'text-anchor="end">{frame.text(value)}</text>'
                for value in heights
            ),
            f'<text x="{LEFT}" y="{HEIGHT - 22}">{frame.first:g}</text>',
            f'<text x="{RIGHT}" y="{HEIGHT - 22}" text-anchor="end">{frame.last:g}</text>',
            f'<text x="{(LEFT + RIGHT) // 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(across)}</text>',
        ]
    )


def _line(points: Sequence[tuple[float, float]], look: str, frame: _Frame) -> str:
    places = [(f"{frame.right(x):.1f}", f"{frame.down(y):.1f}") for x, y in points]
    line = f'<polyline class="curve {look}" points="{" ".join(f"{x},{y}" for x, y in places)}"/>'
    dots = [f'<circle class="point {look}" r="3" cx="{x}" cy="{y}"/>' for x, y in places]
    return line + "".join(dots if len(dots) <= _MARKED else ())


def _told(name: str, points: Sequence[tuple[float, float]], frame: _Frame, across: str) -> str:
    """Where a curve begins and ends, for those who listen to the page."""
    (first, begin), (last, end) = points[0], points[-1]
    return f"{name}: {frame.text(begin)} at {first:g}, {frame.text(end)} at {last:g} ({across})."
