"""An evaluation as one HTML page without other files: curves over the radius for each prompt set, all rows,
the checks that fired, all differences.
"""

from collections.abc import Sequence

from robustclip.reports.charts import Curve, chart
from robustclip.reports.html import render
from robustclip.threat import LEVELS, parse_radius
from training.measuring.pages.wording import attacked
from training.measuring.schema.base import grouped
from training.measuring.schema.evaluation import Check, Evaluation, Headline
from training.measuring.schema.rows import Paired, PairedOverData, Result

_CHART_BY = ("backbone", "data", "split", "classes", "defense")


def evaluation_page(evaluation: Evaluation) -> str:
    """The page for what `robustclip evaluate --json` prints."""
    return render(
        "evaluation.html",
        package="training.measuring.evaluation",
        headlines=[_headline(headline) for headline in evaluation.headlines],
        curves=_charts(evaluation.results),
        results=[_row(result) for result in evaluation.results],
        checked=len(evaluation.checks),
        fired=[_check(check) for check in evaluation.fired],
        differences=[_difference(pair) for pair in (*evaluation.paired, *evaluation.paired_over_data)],
    )


def _charts(results: Sequence[Result]) -> list[str]:
    """Accuracy over the radius (at 0 clean accuracy, mean over seeds), a chart a data set and defense."""
    groups = grouped(results, lambda result: tuple(result.part(*_CHART_BY).values()))
    figures: list[str] = []
    for about, group in groups.items():
        threats = list(dict.fromkeys(result.threat for result in group if result.threat != "clean"))
        names = list(dict.fromkeys(result.prompt_set for result in group))
        curves = [
            Curve(f"{name}, {threat}", _points(group, name, threat)) for name in names for threat in threats
        ]
        figures.append(chart(", ".join(about), curves, across="radius, levels of 255", percent=True))
    return figures


def _points(group: Sequence[Result], name: str, threat: str) -> list[tuple[float, float]]:
    shares: dict[float, list[float]] = {}
    for result in group:
        if result.prompt_set == name and result.threat in ("clean", threat):
            shares.setdefault(round(parse_radius(result.eps) * LEVELS, 6), []).append(result.accuracy)
    return [(radius, sum(each) / len(each)) for radius, each in sorted(shares.items())]


def _headline(headline: Headline) -> dict[str, str]:
    about = f"{headline.words} at {headline.eps}"
    if headline.refused:
        return {"about": about, "refused": ", ".join(headline.refused)}
    rest = f"{headline.n} not broken by T3 ({headline.low:.1%} to {headline.high:.1%})"
    return {"about": about, "refused": "", "share": f"{headline.accuracy:.1%}", "rest": rest}


def _row(result: Result) -> list[str]:
    silent = "" if result.abstained is None else f", abstained {result.abstained:.1%}"
    share = f"{result.accuracy:.1%} ({result.low:.1%} to {result.high:.1%}{silent})"
    subject = [_data(result), result.prompt_set, result.defense]
    return [*subject, attacked(result), result.eps, str(result.seed), share, str(result.n), result.command]


def _check(check: Check) -> list[str]:
    return [
        f"{check.id} {check.name}",
        check.data,
        check.prompt_set,
        check.sentence,
        f"{check.number:.3g}",
        f"{check.threshold:.3g}",
    ]


def _difference(pair: Paired | PairedOverData) -> list[str]:
    points = f"{100 * pair.difference:+.1f} ({100 * pair.low:+.1f} to {100 * pair.high:+.1f})"
    return [_data(pair), pair.threat, pair.eps, pair.a, pair.b, points, pair.better]


def _data(line: Result | Paired | PairedOverData) -> str:
    return f"{line.data_name} {line.split}" + (f" ({line.classes})" if line.classes is not None else "")
