"""Mean accuracy over the radius, of the methods that a table makes headlines of, as a chart beside the results page."""

from fractions import Fraction
from typing import Any, TypeAlias

from robustclip.charts import Curve, chart_file

Facts: TypeAlias = dict[str, Any]

LEVEL = "T2"  # the one that tables measure at several radii
_SHOWN_WITH = "T3"  # whoever was attacked by every means, and those they are compared with, are few enough for one chart


def radius_chart(content: Facts) -> str:
    """Means over all data sets: untouched pictures at 0, then under T2; an SVG file, or nothing where fewer than two radii were measured."""
    means: list[Facts] = content.get("over_data", [])
    paired: list[Facts] = content.get("paired_over_data", [])
    widest = max((len(row["data"]) for row in means), default=0)
    rows = [row for row in means if len(row["data"]) == widest and row["defense"] == "none"]
    shown = {row["prompt_set"] for row in rows if row["threat"] == _SHOWN_WITH} | {row["b"] for row in paired}
    curves: dict[str, dict[float, float]] = {name: {} for name in dict.fromkeys(row["prompt_set"] for row in rows) if name in shown}
    for row in rows:
        if row["threat"] in ("clean", LEVEL) and row["prompt_set"] in curves:
            curves[row["prompt_set"]][float(255 * Fraction(row["eps"]))] = 100 * row["accuracy"]
    if max((len(points) for points in curves.values()), default=0) < 3:
        return ""
    drawn = [Curve(name, sorted(points.items())) for name, points in curves.items()]
    return chart_file("Mean accuracy in per cent", drawn, across=f"radius of {LEVEL}'s attack in levels of 255 (0: untouched)")
