"""The results page, made from committed JSON: `python -m training.measuring.pages.results [--check]` (`make
results`, `make results-check`).

Each `training/results/*.json` is what one `robustclip evaluate --json` or `robustclip certified --json`
printed or `robustclip select` recorded, with a `title` and what it `says` added by hand, or what `robustclip
suite` wrote from the declaration beside it. The page holds nothing that is not in those files, so a number
can't drift from the command that made it.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from robustclip.files import write_atomically
from training.measuring.pages.certified import certified_section
from training.measuring.pages.defense import defense_tables, draws_chart
from training.measuring.pages.radii import radius_chart
from training.measuring.pages.selection import selection_section
from training.measuring.pages.wording import (
    absent,
    accuracies,
    condition,
    differences,
    headline,
    line,
    section,
    seeds_words,
    table,
)
from training.measuring.schema.base import grouped
from training.measuring.schema.evaluation import LeftOut, Mean, OverData, Result
from training.measuring.schema.files import (
    CertifiedFile,
    ResultsFile,
    SelectionFile,
    TableFile,
    Training,
    read_results,
)

FOLDER = Path(__file__).parents[2] / "results"
PAGE = Path(__file__).parents[2] / "RESULTS.md"
_INTRODUCTION = Path(__file__).with_name("introduction.md").read_text(encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Write the results page, or compare it with what the JSON files say."""
    parser = argparse.ArgumentParser(
        prog="python -m training.measuring.pages.results", description=main.__doc__
    )
    parser.add_argument("--folder", type=Path, default=FOLDER, help="the JSON files (default: %(default)s)")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page (default: %(default)s)")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if the page is not what the files make"
    )
    arguments = parser.parse_args(argv)
    found = {path.stem: read_results(path) for path in sorted(arguments.folder.glob("*.json"))}
    made = {arguments.page: render(found)}
    for name, content in found.items():
        if isinstance(content, TableFile) and (chart := _drawn(content)):
            made[arguments.folder / _chart(name, content)] = chart
    for path, text in made.items():
        if not arguments.check:
            write_atomically(path, text.encode())
        elif not path.is_file() or path.read_text() != text:
            print(
                f"{path.name} is not what {arguments.folder.name}/*.json make: run `make results`.",
                file=sys.stderr,
            )
            return 1
    return 0


def render(found: Mapping[str, ResultsFile]) -> str:
    """The page, a section for each file in the order of their names."""
    return "\n".join([_INTRODUCTION, *(_section(name, content) for name, content in found.items())])


def _section(name: str, content: ResultsFile) -> str:
    if isinstance(content, CertifiedFile):
        return certified_section(name, content)
    if isinstance(content, SelectionFile):
        return selection_section(name, content)
    chart = f"results/{_chart(name, content)}"
    lines = defense_tables(content, chart=chart) if _of_defenses(content) else _tables(content)
    lines += _over_data(content)
    if not _of_defenses(content) and _drawn(content):
        lines += ["", f"![Mean accuracy over the radius]({chart})"]
    lines += [*_checks(content), *_methods(content), *_trainings(content)]
    unasked = r" --(prompt-set|threat|eps|defense) \S+"
    command = content.command or re.sub(unasked, "", content.results[0].command) + " ..."
    about = "; ".join(_about(content.results))
    return section(name, content.title, about, content.says, [*lines, "", f"    {command}"])


def _tables(content: TableFile) -> list[str]:
    """A table for each tower and data set, with its differences."""
    groups = dict.fromkeys(row.group for row in content.results)
    refused = {headline(row): row.refused for row in content.headlines if row.refused}
    lines: list[str] = []
    for group in groups:
        lines += [f"### {group}", ""] if len(groups) > 1 else []
        lines += accuracies([row for row in _with_means(content) if row.group == group], refused)
        lines += differences([pair for pair in content.paired if pair.group == group])
        lines += [""] if len(groups) > 1 else []
    return lines


def _of_defenses(content: TableFile) -> bool:
    return len(content.defenses) > 1


def _chart(name: str, content: TableFile) -> str:
    return f"{name}-{'draws' if _of_defenses(content) else 'radii'}.svg"


def _drawn(content: TableFile) -> str:
    """The chart that belongs to a section, if there is one."""
    return draws_chart(content) if _of_defenses(content) else radius_chart(content)


def _about(results: Sequence[Result]) -> list[str]:
    """What was measured on: each data set under each tower, on how many pictures, with which seeds."""
    lines: list[str] = []
    places = grouped(results, lambda row: (row.backbone, row.data_words))
    for place, rows in sorted(places.items()):
        counts: dict[str, list[str]] = {}
        for count, own in sorted(grouped(rows, lambda row: row.n).items()):
            words = seeds_words(sorted({row.seed for row in own}))
            counts.setdefault(words, []).append(f"{count:,}")
        on = [f"{' and '.join(numbers)} pictures, {words}" for words, numbers in counts.items()]
        lines.append(", ".join([*place, *on]))
    return lines


def _with_means(content: TableFile) -> list[Result | Mean]:
    """A row a cell: the mean where several seeds were measured, else the one row."""
    covered = {(*_cell(mean), seed) for mean in content.over_seeds for seed in mean.seeds}
    alone = [row for row in content.results if (*_cell(row), row.seed) not in covered]
    return [*content.over_seeds, *alone]


def _cell(row: Result | Mean) -> tuple[str, ...]:
    return (row.group, str(row.method), row.defense, condition(row), str(row.n))


def _over_data(content: TableFile) -> list[str]:
    """Means over data sets and their differences, a table for each choice of data sets and seeds; and who has
    no mean, for want of which cells.
    """
    means, pairs = grouped(content.over_data, _choice), grouped(content.paired_over_data, _choice)
    left_out = grouped(content.left_out_over_data, _choice)
    lines: list[str] = []
    for about in dict.fromkeys((*means, *pairs, *left_out)):
        tables = ["Nobody has them all."]
        if about in means:
            tables = [*accuracies(means[about], {}), *differences(pairs.get(about, []))]
        lines += ["", f"### Means over {about}", "", *tables, *_left_out(left_out.get(about, []))]
    return lines


def _choice(row: OverData) -> str:
    return f"{row.data_name}: {row.backbone}, {row.split_words}, {seeds_words(row.seeds)}"


def _left_out(rows: Sequence[LeftOut]) -> list[str]:
    """A line for each that lacks the same cells under some conditions."""

    def lacking(row: LeftOut) -> tuple[str, str]:
        missing = "; ".join(f"{part.data}, {seeds_words(part.seeds)}" for part in row.missing)
        return row.title, missing

    lines = [
        f"- no mean of {name} under {', '.join(map(condition, own))}: not measured on {missing}"
        for (name, missing), own in grouped(rows, lacking).items()
    ]
    return _below(lines)


def _methods(content: TableFile) -> list[str]:
    """In which settings the methods of a table are not what their names alone mean."""
    if not content.methods:
        return []
    lines = [
        "",
        "What the methods are here: settings that are not an objective's own defaults (as published, or as "
        "we specify it), and what chose them.",
        "",
        *table(["method", "objective", "settings", "chosen by"]),
    ]
    for label, method in content.methods.items():
        settings = ", ".join(f"{name} {value}" for name, value in method.settings.items())
        record = f"`{method.selection}`" if method.selection else ""
        chosen = ": ".join(filter(None, [record, ", ".join(method.chosen)])) if record else ""
        lines.append(line([label, method.kind, settings or "its own", chosen]))
    return lines


def _trainings(content: TableFile) -> list[str]:
    """What each method of a table took, and what is not there."""
    lines: list[str] = []
    if content.trainings:
        lines = [
            "",
            f"Trainings, means over data sets and seeds; no method may take more than {content.max_passes:,} "
            f"charged image passes (forward + 2 backward).",
            "",
            *table(["method", "trainings", "epochs", "charged passes", "text passes", "seconds"]),
        ]
    for method, own in grouped(content.trainings, lambda training: training.method).items():
        lines.append(line([method, str(len(own)), *_mean_of(own)]))
    return [*lines, *_below([f"- {sentence}" for sentence in absent(content.missing)])]


def _mean_of(trainings: Sequence[Training]) -> Iterable[str]:
    """Epochs, charged passes, text passes and seconds, in the order of the table's columns."""
    counts = [(each.epochs, each.charged, each.text_passes, each.seconds) for each in trainings]
    return (f"{sum(column) / len(counts):,.0f}" for column in zip(*counts, strict=True))


def _checks(content: TableFile) -> list[str]:
    """One sentence for all masking checks, one line for each that fired."""
    count = len(content.checks) if content.checks_made is None else content.checks_made
    if not content.checks and not count:
        return []
    return [
        "",
        f"Masking checks: {count}, {len(content.fired)} of them fired.",
        *(
            f"- {check.id} {check.name}: {check.behind(check.prompt_set)}, {check.data_words}: "
            f"{check.sentence}."
            for check in content.fired
        ),
    ]


def _below(lines: list[str]) -> list[str]:
    """What stands below a table, apart from it."""
    return ["", *lines] if lines else []


if __name__ == "__main__":
    sys.exit(main())
