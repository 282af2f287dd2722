"""The results page, made from committed JSON: `python -m training.measuring.pages.results [--check]` (`make
results`, `make results-check`).

Each `training/results/*.json` is what one `robustclip evaluate --json` or `robustclip certified --json`
printed or `robustclip select` recorded, with a `title` and what it `says` added by hand, or what `robustclip
suite` wrote from the declaration beside it. The page holds nothing that is not in those files, so a number
can't drift from the command that made it.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from robustclip.files import write_atomically
from training.measuring.pages.certified import certified_section
from training.measuring.pages.columns import accuracies, behind, differences, group, headline, subject
from training.measuring.pages.defense import defense_tables, draws_chart
from training.measuring.pages.markdown import line, table
from training.measuring.pages.radii import radius_chart
from training.measuring.pages.selection import selection_section
from training.measuring.pages.wording import absent, condition, data_of, seeds_words, split_of

FOLDER = Path(__file__).parents[2] / "results"
PAGE = Path(__file__).parents[2] / "RESULTS.md"
_INTRODUCTION = Path(__file__).with_name("introduction.md").read_text(encoding="utf-8")
Facts: TypeAlias = dict[str, Any]


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
    found = {path.stem: json.loads(path.read_text()) for path in sorted(arguments.folder.glob("*.json"))}
    charts = {arguments.folder / _chart(name, content): _drawn(content) for name, content in found.items()}
    for path, made in {
        arguments.page: render(found),
        **{path: chart for path, chart in charts.items() if chart},
    }.items():
        if not arguments.check:
            write_atomically(path, made.encode())
        elif not path.is_file() or path.read_text() != made:
            print(
                f"{path.name} is not what {arguments.folder.name}/*.json make: run `make results`.",
                file=sys.stderr,
            )
            return 1
    return 0


def render(found: dict[str, Facts]) -> str:
    """The page, a section for each file in the order of their names."""
    return "\n".join([_INTRODUCTION, *(_section(name, content) for name, content in found.items())])


def _section(name: str, content: Facts) -> str:
    if content.get("kind") == "certified":
        return certified_section(name, content)
    if "candidates" in content:
        return selection_section(name, content)
    results: list[Facts] = content["results"]
    about = _about(results)
    lines = [
        f"## {content['title']}",
        "",
        f"{'; '.join(about)} (`results/{name}.json`).",
        "",
        content["says"],
        "",
    ]
    groups = list(dict.fromkeys(map(group, results)))
    refused = {headline(row): row["refused"] for row in content.get("headlines", ()) if row["refused"]}
    if _of_defenses(content):
        lines, groups = [*lines, *defense_tables(content, chart=f"results/{_chart(name, content)}")], []
    for about_group in groups:
        lines += [f"### {about_group}", ""] if len(groups) > 1 else []
        rows = [row for row in _with_means(content) if group(row) == about_group]
        lines += accuracies(rows, refused)
        lines += differences([row for row in content.get("paired", ()) if group(row) == about_group])
        lines += [""] if len(groups) > 1 else []
    lines += _over_data(content)
    if not _of_defenses(content) and _drawn(content):
        lines += ["", f"![Mean accuracy over the radius](results/{_chart(name, content)})"]
    lines += _checks(content)
    lines += _methods(content)
    lines += _trainings(content)
    options = (
        content.get("command")
        or re.sub(r" --(prompt-set|threat|eps|defense) \S+", "", results[0]["command"]) + " ..."
    )
    return "\n".join([*lines, "", f"    {options}", ""])


def _of_defenses(content: Facts) -> bool:
    return len(content.get("defenses", ())) > 1


def _chart(name: str, content: Facts) -> str:
    return f"{name}-{'draws' if _of_defenses(content) else 'radii'}.svg"


def _drawn(content: Facts) -> str:
    """The chart that belongs to a section, if there is one."""
    return draws_chart(content) if _of_defenses(content) else radius_chart(content)


def _about(results: Sequence[Facts]) -> list[str]:
    """What was measured on: each data set under each tower, on how many pictures, with which seeds."""
    seeds: dict[tuple[str, str], dict[int, set[int]]] = {}
    for row in results:
        seeds.setdefault((row["backbone"], data_of(row)), {}).setdefault(row["n"], set()).add(row["seed"])
    lines: list[str] = []
    for (backbone, data), by_count in sorted(seeds.items()):
        counts: dict[str, list[int]] = {}
        for count, own in sorted(by_count.items()):
            counts.setdefault(seeds_words(sorted(own)), []).append(count)
        on = [
            f"{' and '.join(f'{count:,}' for count in numbers)} pictures, {words}"
            for words, numbers in counts.items()
        ]
        lines.append(f"{backbone}, {data}, {', '.join(on)}")
    return lines


def _with_means(content: Facts) -> list[Facts]:
    """A row a cell: the mean where several seeds were measured, else the one row."""
    means: list[Facts] = content.get("over_seeds", [])
    covered = {(*_cell(row), seed) for row in means for seed in row["seeds"]}
    return [*means, *(row for row in content["results"] if (*_cell(row), row["seed"]) not in covered)]


def _cell(row: Facts) -> tuple[str, ...]:
    return (group(row), str(row.get("method")), row["defense"], condition(row), str(row["n"]))


def _over_data(content: Facts) -> list[str]:
    """Means over data sets and their differences, a table for each choice of data sets and seeds; and who has
    no mean, for want of which cells.
    """
    groups: dict[str, dict[str, list[Facts]]] = {}
    for name in ("over_data", "paired_over_data", "left_out_over_data"):
        for row in content.get(name, ()):
            about = (
                f"{', '.join(row['data'])}: {row['backbone']}, {split_of(row)}, {seeds_words(row['seeds'])}"
            )
            groups.setdefault(about, {}).setdefault(name, []).append(row)
    lines: list[str] = []
    for about, own in groups.items():
        means, paired, left_out = (
            own.get(name, []) for name in ("over_data", "paired_over_data", "left_out_over_data")
        )
        tables = [*accuracies(means, {}), *differences(paired)] if means else ["Nobody has them all."]
        lines += ["", f"### Means over {about}", "", *tables, *_left_out(left_out)]
    return lines


def _left_out(rows: Sequence[Facts]) -> list[str]:
    """A line for each that lacks the same cells under some conditions."""
    conditions: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        missing = "; ".join(f"{part['data']}, {seeds_words(part['seeds'])}" for part in row["missing"])
        conditions.setdefault((subject(row), missing), []).append(condition(row))
    lines = [
        f"- no mean of {name} under {', '.join(under)}: not measured on {missing}"
        for (name, missing), under in conditions.items()
    ]
    return [*([""] if lines else []), *lines]


def _methods(content: Facts) -> list[str]:
    """In which settings the methods of a table are not what their names alone mean."""
    methods: dict[str, Facts] = content.get("methods", {})
    if not methods:
        return []
    lines = [
        "",
        "What the methods are here: settings that are not an objective's own defaults (as published, or as "
        "we specify it), and what chose them.",
        "",
    ]
    lines += table(["method", "objective", "settings", "chosen by"])
    for label, about in methods.items():
        settings = ", ".join(f"{name} {value}" for name, value in about["settings"].items())
        chosen = (
            ": ".join(filter(None, [f"`{about['selection']}`", ", ".join(about["chosen"])]))
            if about["selection"]
            else ""
        )
        lines.append(line([label, about["kind"], settings or "its own", chosen]))
    return lines


def _trainings(content: Facts) -> list[str]:
    """What each method of a table took, and what is not there."""
    trainings: list[Facts] = content.get("trainings", [])
    lines: list[str] = []
    if trainings:
        cap = f"{content['max_passes']:,}"
        lines = [
            "",
            f"Trainings, means over data sets and seeds; no method may take more than {cap} charged image "
            f"passes (forward + 2 backward).",
            "",
        ]
        lines += table(["method", "trainings", "epochs", "charged passes", "text passes", "seconds"])
        for method in dict.fromkeys(row["method"] for row in trainings):
            own = [row for row in trainings if row["method"] == method]
            means = [
                sum(row[name] for row in own) / len(own)
                for name in ("epochs", "charged", "text_passes", "seconds")
            ]
            lines.append(line([method, str(len(own)), *(f"{mean:,.0f}" for mean in means)]))
    gaps = [f"- {sentence}" for sentence in absent(content.get("missing", ()))]
    return [*lines, *([""] if gaps else []), *gaps]


def _checks(content: Facts) -> list[str]:
    """One sentence for all masking checks, one line for each that fired."""
    checks: list[Facts] = content.get("checks", [])
    if not checks and not content.get("checks_made"):
        return []
    fired = [check for check in checks if check["fired"]]
    lines = ["", f"Masking checks: {content.get('checks_made', len(checks))}, {len(fired)} of them fired."]
    return [
        *lines,
        *(
            f"- {check['id']} {check['name']}: {behind(check['prompt_set'], check)}, {data_of(check)}: "
            f"{check['sentence']}."
            for check in fired
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
