"""What `robustclip evaluate` shows to people: tables on the terminal, and a page without other files."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from rich.console import Console

from robustclip.reports.charts import Curve, chart
from robustclip.reports.html import render
from robustclip.threat import LEVELS, parse_radius
from training.commands import console, print_rows
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

_Line: TypeAlias = Result | Mean | MeanOverData | Paired | PairedOverData


def print_evaluation(evaluation: Evaluation) -> None:
    """Every row with the checks that speak against it, then what follows from the rows."""
    out, results = console(), evaluation.results
    fired = grouped(evaluation.fired, lambda check: (*check.key(*SUBJECT), *check.rows[-1]))
    several = len({result.seed for result in results}) > 1
    voted = any(result.abstained is not None for result in results)
    unseen = any(result.seen_labels != result.measured_labels for result in results)
    print_rows(None, [_of_result(row, fired, several, voted, unseen) for row in results])
    for check in evaluation.fired:
        about = f"{check.data}, {check.prompt_set}"
        out.print(
            f"{check.id} {check.name} ({about}): {check.sentence} ({check.number:.3g}, "
            f"threshold {check.threshold:.3g})."
        )
    print_rows("means over seeds", [_of_mean(mean) for mean in evaluation.over_seeds])
    print_rows("means over data sets", [_of_mean(mean) for mean in evaluation.over_data])
    print_rows("same pictures", [_of_pair(pair) for pair in evaluation.paired])
    print_rows("means over data sets", [_of_pair(pair) for pair in evaluation.paired_over_data])
    _print_headlines(out, evaluation.headlines)


def print_plan(cells: Sequence[Mapping[str, object]], summary: str) -> None:
    """The cells as `plan.as_facts` has them."""
    heads = ("backbone", "data", "prompt set", "defense", "threat", "eps", "seed", "n")
    rows: list[dict[str, str]] = []
    for cell in cells:
        charged = "measured already" if cell["measured"] else f"{cell['charged']:,}"
        named = {head: str(cell[head.replace(" ", "_")]) for head in heads}
        rows.append({**named, "charged passes, at most": charged})
    print_rows(None, rows)
    console().print(summary)


def print_transfer(rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows of `transfer_matrix` as a table for each backbone, data set, radius and seed: a line for the
    prompt set that pictures were made against, a column for the one that they are judged under.
    """
    about = ("backbone", "data", "split", "eps", "seed", "n")
    groups = grouped(rows, lambda row: tuple(str(row[name]) for name in about))
    for (backbone, data, split, eps, seed, n), group in groups.items():
        lines = [
            {"made against": made_against}
            | {str(row["judged_under"]): f"{row['accuracy']:.1%}" for row in judged}
            for made_against, judged in grouped(group, lambda row: str(row["made_against"])).items()
        ]
        title = f"accuracy, judged under: {backbone}, {data} {split}, {n} pictures, {eps}, seed {seed}"
        print_rows(title, lines)


def _of_result(
    result: Result,
    fired: Mapping[tuple[str, ...], Sequence[Check]],
    several: bool,
    voted: bool,
    unseen: bool,
) -> dict[str, str]:
    """`several` seeds, `voted` chains and names that were `unseen` in training have columns where any row has
    them.
    """
    checks = fired.get(result.key(*SUBJECT, "threat", "eps"), [])
    silent = "" if result.abstained is None else f"{result.abstained:.1%}"
    seen = "" if result.seen_labels is None else f"{result.seen_labels} of {result.measured_labels}"
    return {
        **_cells(result, "backbone", "data", "prompt set", "defense", "threat", "eps"),
        **(_cells(result, "seed") if several else {}),
        "accuracy": f"{result.accuracy:.1%}",
        "95 % interval": _interval(result),
        "8 bit": f"{result.accuracy_8bit:.1%}",
        "n": str(result.n),
        "seconds": f"{result.seconds:.1f}",
        "checks": ", ".join(check.id for check in checks),
        **({"abstained": silent} if voted else {}),
        **({"names trained on": seen} if unseen else {}),
    }


def _of_mean(mean: Mean | MeanOverData) -> dict[str, str]:
    return {
        **_cells(mean, "backbone", "data", "prompt set", "defense", "threat", "eps"),
        "seeds": ", ".join(map(str, mean.seeds)),
        "mean": f"{mean.accuracy:.1%}",
        "95 % interval": _interval(mean),
        "deviation": f"{mean.deviation:.1%}" if isinstance(mean, Mean) else "",
    }


def _of_pair(pair: Paired | PairedOverData) -> dict[str, str]:
    return {
        **_cells(pair, "backbone", "data", "defense", "threat", "eps", "a", "b"),
        "a - b, points": f"{100 * pair.difference:+.1f}",
        "95 % interval": f"{100 * pair.low:+.1f} to {100 * pair.high:+.1f}",
        "says": pair.better,
    }


def _print_headlines(out: Console, headlines: Sequence[Headline]) -> None:
    for headline in headlines:
        about = f"{headline.words} at {headline.eps}"
        if headline.refused:
            out.print(f"inconclusive: {about}: no headline, because of {', '.join(headline.refused)}.")
        else:
            out.print(
                f"{about}: {headline.accuracy:.1%} of {headline.n} not broken by T3 ({_interval(headline)})."
            )


def _cells(line: _Line, *heads: str) -> dict[str, str]:
    classes = "" if line.classes is None else f" ({line.classes})"
    made = {"data": line.data_name + classes, "threat": attacked(line)}
    return {head: made.get(head) or str(getattr(line, head.replace(" ", "_"))) for head in heads}


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
