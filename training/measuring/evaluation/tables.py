"""What `robustclip evaluate` shows to people: tables on the terminal, and a page without other files."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from robustclip.reports.charts import Curve, chart
from robustclip.reports.html import render
from robustclip.threat import LEVELS, parse_radius
from training.commands import console
from training.measuring.pages.wording import attacked
from training.measuring.schema.base import grouped
from training.measuring.schema.evaluation import (
    SUBJECT,
    Check,
    Evaluation,
    Headline,
    Mean,
    MeanOverData,
    Paired,
    PairedOverData,
    Result,
)


def print_evaluation(evaluation: Evaluation) -> None:
    """Every row with the checks that speak against it, then what follows from the rows."""
    out = console()
    results = evaluation.results
    flags = _flags(evaluation.fired)
    several = len({result.seed for result in results}) > 1
    heads = ("backbone", "data", "prompt set", "defense", "threat", "eps", *(("seed",) if several else ()))
    voted = any(result.abstained is not None for result in results)
    unseen = any(result.seen_labels != result.measured_labels for result in results)
    table = Table(
        *heads,
        "accuracy",
        "95 % interval",
        "8 bit",
        "n",
        "seconds",
        "checks",
        *(("abstained",) if voted else ()),
        *(("names trained on",) if unseen else ()),
    )
    for result in results:
        raised = flags.get(result.key(*SUBJECT, "threat", "eps"), [])
        seen = "" if result.seen_labels is None else f"{result.seen_labels} of {result.measured_labels}"
        silent = "" if result.abstained is None else f"{result.abstained:.1%}"
        table.add_row(
            *(_cell(result, head) for head in heads),
            f"{result.accuracy:.1%}",
            _interval(result),
            f"{result.accuracy_8bit:.1%}",
            str(result.n),
            f"{result.seconds:.1f}",
            ", ".join(raised),
            *((silent,) if voted else ()),
            *((seen,) if unseen else ()),
        )
    out.print(table)
    for check in evaluation.fired:
        about = f"{check.data}, {check.prompt_set}"
        out.print(
            f"{check.id} {check.name} ({about}): {check.sentence} ({check.number:.3g}, "
            f"threshold {check.threshold:.3g})."
        )
    _print_means(out, evaluation.over_seeds, "over seeds")
    _print_means(out, evaluation.over_data, "over data sets")
    _print_paired(out, evaluation.paired, "same pictures")
    _print_paired(out, evaluation.paired_over_data, "means over data sets")
    _print_headlines(out, evaluation.headlines)


def print_plan(cells: Sequence[Mapping[str, object]], summary: str) -> None:
    """The cells as `plan.as_facts` has them."""
    out = console()
    heads = ("backbone", "data", "prompt set", "defense", "threat", "eps", "seed", "n")
    table = Table(*heads, "charged passes, at most")
    for cell in cells:
        charged = "measured already" if cell["measured"] else f"{cell['charged']:,}"
        table.add_row(*(str(cell[head.replace(" ", "_")]) for head in heads), charged)
    out.print(table)
    out.print(summary)


def print_transfer(rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows of `transfer_matrix` as a table for each backbone, data set, radius and seed: a line for the
    prompt set that pictures were made against, a column for the one that they are judged under.
    """
    out = console()
    about = ("backbone", "data", "split", "eps", "seed", "n")
    groups = grouped(rows, lambda row: tuple(str(row[name]) for name in about))
    for (backbone, data, split, eps, seed, n), group in groups.items():
        names = list(dict.fromkeys(row["judged_under"] for row in group))
        table = Table(
            "made against",
            *names,
            title=f"accuracy, judged under: {backbone}, {data} {split}, {n} pictures, {eps}, seed {seed}",
        )
        for made_against in names:
            cells = {row["judged_under"]: row for row in group if row["made_against"] == made_against}
            table.add_row(made_against, *(f"{cells[name]['accuracy']:.1%}" for name in names))
        out.print(table)


def _print_means(out: Console, means: Sequence[Mean | MeanOverData], what: str) -> None:
    if not means:
        return
    heads = ("backbone", "data", "prompt set", "defense", "threat", "eps")
    table = Table(*heads, "seeds", "mean", "95 % interval", "deviation", title=f"means {what}")
    for mean in means:
        table.add_row(
            *(_cell(mean, head) for head in heads),
            ", ".join(map(str, mean.seeds)),
            f"{mean.accuracy:.1%}",
            _interval(mean),
            f"{mean.deviation:.1%}" if isinstance(mean, Mean) else "",
        )
    out.print(table)


def _print_paired(out: Console, paired: Sequence[Paired | PairedOverData], what: str) -> None:
    if not paired:
        return
    heads = ("backbone", "data", "defense", "threat", "eps", "a", "b")
    table = Table(*heads, "a - b, points", "95 % interval", "says", title=what)
    for pair in paired:
        table.add_row(
            *(_cell(pair, head) for head in heads),
            f"{100 * pair.difference:+.1f}",
            f"{100 * pair.low:+.1f} to {100 * pair.high:+.1f}",
            pair.better,
        )
    out.print(table)


def _print_headlines(out: Console, headlines: Sequence[Headline]) -> None:
    for headline in headlines:
        about = f"{headline.words} at {headline.eps}"
        if headline.refused:
            out.print(f"inconclusive: {about}: no headline, because of {', '.join(headline.refused)}.")
        else:
            out.print(
                f"{about}: {headline.accuracy:.1%} of {headline.n} not broken by T3 ({_interval(headline)})."
            )


def _flags(fired: Sequence[Check]) -> dict[tuple[str, ...], list[str]]:
    """Row -> identifiers of the checks that speak against it."""
    flags: dict[tuple[str, ...], list[str]] = {}
    for check in fired:
        flags.setdefault((*check.key(*SUBJECT), *check.rows[-1]), []).append(check.id)
    return flags


def _cell(line: Result | Mean | MeanOverData | Paired | PairedOverData, head: str) -> str:
    if head == "data":
        return line.data_name + (f" ({line.classes})" if line.classes is not None else "")
    return attacked(line) if head == "threat" else str(getattr(line, head.replace(" ", "_")))


def _interval(line: Result | Mean | MeanOverData | Headline) -> str:
    return f"{line.low:.1%} - {line.high:.1%}"


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
