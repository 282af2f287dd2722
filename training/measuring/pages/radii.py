"""Mean accuracy over the radius, of the methods that a table makes headlines of, as a chart beside the
results page.
"""

import statistics
from fractions import Fraction
from typing import Any, TypeAlias

from robustclip.reports.charts import Curve, chart_file

Facts: TypeAlias = dict[str, Any]

_LEVEL, _HEADLINE = "T2", "T3"


def radius_chart(content: Facts) -> str:
    """Means over data sets of one seed: untouched at 0, then under T2, of whoever was attacked under T3 or
    all are compared with; an SVG file.

    Nothing where nobody has two radii on all data sets of a table. Untouched pictures may be more than
    attacked ones, as the table says.
    """
    results: list[Facts] = [
        row for row in content.get("results", ()) if row.get("defense") == "none" and "method" in row
    ]
    measures = _measures(content)
    shown = dict.fromkeys(
        row["method"] for row in results if row["threat"] == _HEADLINE or row["method"] in measures
    )
    data = {row["data"] for row in results}
    for seed in sorted({row["seed"] for row in results}):
        found: dict[str, dict[Fraction, dict[str, float]]] = {name: {} for name in shown}
        for row in results:
            if row["seed"] == seed and row["threat"] in ("clean", _LEVEL) and row["method"] in found:
                found[row["method"]].setdefault(255 * Fraction(row["eps"]), {})[row["data"]] = (
                    100 * row["accuracy"]
                )
        means = {
            name: sorted(
                (float(radius), statistics.fmean(own.values()))
                for radius, own in radii.items()
                if own.keys() == data
            )
            for name, radii in found.items()
        }
        if any(len(points) > 2 for points in means.values()):
            title = f"Mean accuracy in per cent over {len(data)} data sets, seed {seed}"
            return chart_file(
                title,
                [Curve(name, points) for name, points in means.items()],
                across="radius in levels of 255 (T2; 0: untouched)",
            )
    return ""


def _measures(content: Facts) -> set[str]:
    """Whoever all others are compared with."""
    partners: dict[str, set[str]] = {}
    for row in content.get("paired_over_data", ()):
        for one, other in ((row["a"], row["b"]), (row["b"], row["a"])):
            partners.setdefault(one, set()).add(other)
    most = max(map(len, partners.values()), default=0)
    return {name for name, others in partners.items() if len(others) == most}
