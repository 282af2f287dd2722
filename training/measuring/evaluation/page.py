"""An evaluation as one HTML page that needs nothing else: a curve over the radius for each prompt set, all
rows, all checks and all differences.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from robustclip.reports.charts import Curve, chart
from robustclip.reports.html import render
from robustclip.threat import LEVELS, parse_radius
from training.measuring.pages.difference import decided
from training.measuring.pages.wording import attacked

Facts: TypeAlias = Mapping[str, Any]
_CHART_BY = ("backbone", "data", "split", "classes", "defense")


def evaluation_page(evaluation: Facts) -> str:
    """The whole page, from what `robustclip evaluate --json` prints."""
    results: Sequence[Facts] = evaluation["results"]
    headlines: Sequence[Facts] | None = evaluation.get("headlines")
    checks: Sequence[Facts] = evaluation.get("checks", ())
    differences = [*evaluation.get("paired", ()), *evaluation.get("paired_over_data", ())]
    return render(
        "evaluation.html",
        package="training.measuring.evaluation",
        headlines=None if headlines is None else [_headline(facts) for facts in headlines],
        curves=_charts(results),
        results=[_row(facts) for facts in results],
        checked=len(checks),
        fired=[_check(check) for check in checks if check["fired"]],
        differences=[_difference(facts) for facts in differences],
    )


def _charts(results: Sequence[Facts]) -> list[str]:
    """Accuracy over the radius (at 0 clean accuracy, mean over seeds), a chart a data set and defense."""
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
    return [(radius, sum(each) / len(each)) for radius, each in sorted(shares.items())]


def _headline(facts: Facts) -> dict[str, str]:
    about = (
        f"{facts['prompt_set']} on {facts['data']} ({facts['backbone']}, defense {facts['defense']}, "
        f"seed {facts['seed']}) at {facts['eps']}"
    )
    if facts["refused"]:
        return {"about": about, "refused": ", ".join(facts["refused"])}
    rest = f"{facts['n']} not broken by T3 ({facts['low']:.1%} to {facts['high']:.1%})"
    return {"about": about, "refused": "", "share": f"{facts['accuracy']:.1%}", "rest": rest}


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


def _difference(facts: Facts) -> list[str]:
    says = (f"{'a' if facts['low'] > 0 else 'b'} is better") if decided(facts) else "no difference"
    points = f"{100 * facts['difference']:+.1f} ({100 * facts['low']:+.1f} to {100 * facts['high']:+.1f})"
    return [_data(facts), *(str(facts[name]) for name in ("threat", "eps", "a", "b")), points, says]


def _data(facts: Facts) -> str:
    data = ", ".join(facts["data"]) if isinstance(facts["data"], list) else facts["data"]
    return f"{data} {facts['split']}" + (f" ({facts['classes']})" if "classes" in facts else "")
