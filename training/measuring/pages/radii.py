"""Mean accuracy over the radius, of the methods that a table makes headlines of, as a chart beside the
results page.
"""

import statistics
from fractions import Fraction

from robustclip.reports.charts import Curve, chart_file
from training.measuring.schema.files import TableFile

_LEVEL, _HEADLINE = "T2", "T3"


def radius_chart(content: TableFile) -> str:
    """Means over data sets of one seed: untouched at 0, then under T2, of whoever was attacked under T3 or
    all are compared with; an SVG file.

    Nothing where nobody has two radii on all data sets of a table. Untouched pictures may be more than
    attacked ones, as the table says.
    """
    rows = [row for row in content.results if row.defense == "none" and row.method is not None]
    measures = _measures(content)
    shown = dict.fromkeys(row.label for row in rows if row.threat == _HEADLINE or row.label in measures)
    data = {row.data for row in rows}
    for seed in sorted({row.seed for row in rows}):
        found: dict[str, dict[Fraction, dict[str, float]]] = {name: {} for name in shown}
        for row in rows:
            if row.seed == seed and row.threat in ("clean", _LEVEL) and row.label in found:
                at_radius = found[row.label].setdefault(255 * Fraction(row.eps), {})
                at_radius[row.data] = 100 * row.accuracy
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


def _measures(content: TableFile) -> set[str]:
    """Whoever all others are compared with."""
    partners: dict[str, set[str]] = {}
    for pair in content.paired_over_data:
        partners.setdefault(pair.a, set()).add(pair.b)
        partners.setdefault(pair.b, set()).add(pair.a)
    most = max(map(len, partners.values()), default=0)
    return {name for name, others in partners.items() if len(others) == most}
