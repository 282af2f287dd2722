"""An evaluation as one HTML page that needs nothing else: a curve over the radius for each prompt set, every
row, every check, every difference.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, TypeAlias

from robustclip.reports.charts import STYLE, Curve, chart
from robustclip.threat import LEVELS, parse_radius
from training.measuring.pages.difference import decided
from training.measuring.pages.wording import attacked

Facts: TypeAlias = Mapping[str, Any]
_PAGE_STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
.wide { overflow-x: auto } table { border-collapse: collapse; margin: .5rem 0 1.5rem }
td, th { padding: .2rem .9rem .2rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid \
#8884 } code { overflow-wrap: anywhere }
"""
_CHART_BY = ("backbone", "data", "split", "classes", "defense")


def evaluation_page(found: Facts) -> str:
    """The whole page of what `robustclip evaluate --json` prints. Everything that came from outside is
    escaped.
    """
    results: Sequence[Facts] = found["results"]
    checks: Sequence[Facts] = [check for check in found.get("checks", ()) if check["fired"]]
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width">',
        f"<title>Evaluation</title><style>{_PAGE_STYLE}{STYLE}</style></head><body><h1>Evaluation</h1>",
        *(_headline(facts) for facts in found.get("headlines", ())),
        "<p>Nobody measured T3: there is no headline.</p>" if "headlines" not in found else "",
        "<h2>Over the radius</h2>",
        *_charts(results),
        "<h2>Every row</h2>",
        _table(
            ["data", "prompt set", "defense", "threat", "eps", "seed", "accuracy", "n", "command"],
            [_row(facts) for facts in results],
        ),
        "<h2>Masking checks</h2>",
        f"<p>{len(found.get('checks', ()))} checks, {len(checks)} fired.</p>",
        _table(
            ["check", "data", "prompt set", "what", "number", "threshold"],
            [_check(check) for check in checks],
        )
        if checks
        else "",
        "<h2>Differences on the same pictures</h2>",
        _table(
            ["data", "threat", "eps", "a", "b", "a - b, points", "says"],
            [_difference(facts) for facts in _differences(found)],
        ),
        "</body></html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _charts(results: Sequence[Facts]) -> list[str]:
    """Accuracy over the radius, a chart for each data set and defense; clean accuracy is where the radius is
    0. Seeds share their mean.
    """
    groups: dict[tuple[str, ...], list[Facts]] = {}
    for facts in results:
        groups.setdefault(tuple(str(facts[name]) for name in _CHART_BY if name in facts), []).append(facts)
    figures: list[str] = []
    for about, group in groups.items():
        threats = list(dict.fromkeys(facts["threat"] for facts in group if facts["threat"] != "clean"))
        names = list(dict.fromkeys(facts["prompt_set"] for facts in group))
        curves = [
            Curve(f"{name}, {threat}", _points(group, name, threat)) for name in names for threat in threats
        ]
        figures.append(chart(", ".join(about), curves, across="radius, levels of 255", percent=True))
    return figures


def _points(group: Sequence[Facts], name: str, threat: str) -> list[tuple[float, float]]:
    shares: dict[float, list[float]] = {}
    for facts in group:
        if facts["prompt_set"] == name and facts["threat"] in ("clean", threat):
            shares.setdefault(round(parse_radius(facts["eps"]) * LEVELS, 6), []).append(facts["accuracy"])
    return [(radius, sum(found) / len(found)) for radius, found in sorted(shares.items())]


def _headline(facts: Facts) -> str:
    about = (
        f"{facts['prompt_set']} on {facts['data']} ({facts['backbone']}, defense {facts['defense']}, "
        f"seed {facts['seed']}) at {facts['eps']}"
    )
    if facts["refused"]:
        return (
            f"<p><strong>Inconclusive</strong>: {escape(about)}. No headline, because of "
            f"{escape(', '.join(facts['refused']))}.</p>"
        )
    share = (
        f"<strong>{facts['accuracy']:.1%}</strong> of {facts['n']} not broken by T3 ({facts['low']:.1%} "
        f"to {facts['high']:.1%})"
    )
    return f"<p>{share}: {escape(about)}.</p>"


def _row(facts: Facts) -> list[str]:
    silent = f", abstained {facts['abstained']:.1%}" if "abstained" in facts else ""
    share = f"{facts['accuracy']:.1%} ({facts['low']:.1%} to {facts['high']:.1%}{silent})"
    return [
        _data(facts),
        *(str(facts[name]) for name in ("prompt_set", "defense")),
        attacked(facts),
        *(str(facts[name]) for name in ("eps", "seed")),
        share,
        str(facts["n"]),
        facts["command"],
    ]


def _check(check: Facts) -> list[str]:
    return [
        f"{check['id']} {check['name']}",
        check["data"],
        check["prompt_set"],
        check["sentence"],
        f"{check['number']:.3g}",
        f"{check['threshold']:.3g}",
    ]


def _differences(found: Facts) -> list[Facts]:
    return [*found.get("paired", ()), *found.get("paired_over_data", ())]


def _difference(facts: Facts) -> list[str]:
    says = (f"{'a' if facts['low'] > 0 else 'b'} is better") if decided(facts) else "no difference"
    points = f"{100 * facts['difference']:+.1f} ({100 * facts['low']:+.1f} to {100 * facts['high']:+.1f})"
    return [_data(facts), *(str(facts[name]) for name in ("threat", "eps", "a", "b")), points, says]


def _data(facts: Facts) -> str:
    data = ", ".join(facts["data"]) if isinstance(facts["data"], list) else facts["data"]
    return f"{data} {facts['split']}" + (f" ({facts['classes']})" if "classes" in facts else "")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return "<p>None.</p>"
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'
