"""An evaluation as one HTML page without other files: curves over the radius for each prompt set, all rows,
the checks that fired, all differences.
"""

from collections.abc import Sequence
from html import escape

from robustclip.reports.charts import STYLE, Curve, chart
from robustclip.threat import LEVELS, parse_radius
from training.measuring.pages.wording import attacked
from training.measuring.schema.base import grouped
from training.measuring.schema.evaluation import Check, Evaluation, Headline
from training.measuring.schema.rows import Paired, PairedOverData, Result

_PAGE_STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
.wide { overflow-x: auto } table { border-collapse: collapse; margin: .5rem 0 1.5rem }
td, th { padding: .2rem .9rem .2rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid \
#8884 } code { overflow-wrap: anywhere }
"""
_CHART_BY = ("backbone", "data", "split", "classes", "defense")


def evaluation_page(evaluation: Evaluation) -> str:
    """The page for what `robustclip evaluate --json` prints. All text from outside is escaped."""
    fired = evaluation.fired
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width">',
        f"<title>Evaluation</title><style>{_PAGE_STYLE}{STYLE}</style></head><body><h1>Evaluation</h1>",
        *map(_headline, evaluation.headlines),
        "<p>Nobody measured T3: there is no headline.</p>" if not evaluation.headlines else "",
        "<h2>Over the radius</h2>",
        *_charts(evaluation.results),
        "<h2>Every row</h2>",
        _table(
            ["data", "prompt set", "defense", "threat", "eps", "seed", "accuracy", "n", "command"],
            [*map(_row, evaluation.results)],
        ),
        "<h2>Masking checks</h2>",
        f"<p>{len(evaluation.checks)} checks, {len(fired)} fired.</p>",
        _table(
            ["check", "data", "prompt set", "what", "number", "threshold"],
            [*map(_check, fired)],
        )
        if fired
        else "",
        "<h2>Differences on the same pictures</h2>",
        _table(
            ["data", "threat", "eps", "a", "b", "a - b, points", "says"],
            [*map(_difference, (*evaluation.paired, *evaluation.paired_over_data))],
        ),
        "</body></html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _charts(results: Sequence[Result]) -> list[str]:
    """Accuracy over the radius, a chart for each data set and defense; clean accuracy is where the radius is
    0. Seeds share their mean.
    """
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
    return [(radius, sum(found) / len(found)) for radius, found in sorted(shares.items())]


def _headline(headline: Headline) -> str:
    about = f"{headline.words} at {headline.eps}"
    if headline.refused:
        return (
            f"<p><strong>Inconclusive</strong>: {escape(about)}. No headline, because of "
            f"{escape(', '.join(headline.refused))}.</p>"
        )
    share = (
        f"<strong>{headline.accuracy:.1%}</strong> of {headline.n} not broken by T3 ({headline.low:.1%} "
        f"to {headline.high:.1%})"
    )
    return f"<p>{share}: {escape(about)}.</p>"


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


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return "<p>None.</p>"
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'
