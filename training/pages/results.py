"""The results page, made from committed JSON: `python -m training.pages.results [--check]` (`make results`, `make results-check`).

Each `training/results/*.json` is what one `robustclip evaluate --json` or `robustclip certified --json` printed, with a `title` and what it `says`
added by hand, or what `robustclip suite` wrote from the declaration beside it. The page holds nothing that is not in those files, so a number can't
drift from the command that made it.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from robustclip.files import write_atomically
from training.pages.certified import certified_section
from training.pages.defense import defense_tables, draws_chart
from training.pages.markdown import line, table
from training.pages.wording import accuracy, condition, data_of, difference

FOLDER = Path(__file__).parents[1] / "results"
PAGE = Path(__file__).parents[1] / "RESULTS.md"
_INTRODUCTION = """# Results

Made by `make results` from the JSON files in `results/`, which `robustclip evaluate --json` or `robustclip suite` wrote; `make results-check`
compares. Accuracy in per cent with Wilson's 95 % interval. *Paired* is the difference on the same pictures, in points, with its bootstrap interval
and McNemar's exact p; it is bold where both exclude 0. `T0` attacks the image tower without prompts (blind to text, labels and defense), `T1` the
deployed one under words that a person wrote, `T2` everything, `T3` everything by every means: it alone makes a headline, and a cell that a masking
check contradicts is *inconclusive*. `static` attacks as `T2` does, but without the defense behind which its pictures are judged; `black-box` asks the
deployed chain for scores and uses no gradient. Where an attack took other steps, draws or queries than the level's own, that stands beside it. Of
fewer than 64 pictures there are counts, no percentages. Several seeds show their mean, its bootstrap interval over pictures and seeds, and their
standard deviation. Every row's own command stands in its JSON.
"""
Facts: TypeAlias = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Write the results page, or compare it with what the JSON files say."""
    parser = argparse.ArgumentParser(prog="python -m training.pages.results", description=main.__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="the JSON files (default: %(default)s)")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page is not what the files make")
    arguments = parser.parse_args(argv)
    found = {path.stem: json.loads(path.read_text()) for path in sorted(arguments.folder.glob("*.json"))}
    charts = {arguments.folder / _chart(name): draws_chart(content) for name, content in found.items() if _of_defenses(content)}
    for path, made in {arguments.page: render(found), **{path: chart for path, chart in charts.items() if chart}}.items():
        if not arguments.check:
            write_atomically(path, made.encode())
        elif not path.is_file() or path.read_text() != made:
            print(f"{path.name} is not what {arguments.folder.name}/*.json make: run `make results`.", file=sys.stderr)
            return 1
    return 0


def render(found: dict[str, Facts]) -> str:
    """The page, a section for each file in the order of their names."""
    return "\n".join([_INTRODUCTION, *(_section(name, content) for name, content in found.items())])


def _section(name: str, content: Facts) -> str:
    if content.get("kind") == "certified":
        return certified_section(name, content)
    results: list[Facts] = content["results"]
    about = _about(results)
    lines = [f"## {content['title']}", "", f"{'; '.join(about)} (`results/{name}.json`).", "", content["says"], ""]
    groups = list(dict.fromkeys(_group(row) for row in results))
    refused = {_headline(row): row["refused"] for row in content.get("headlines", ()) if row["refused"]}
    if _of_defenses(content):
        lines, groups = [*lines, *defense_tables(content, chart=f"results/{_chart(name)}")], []
    for group in groups:
        lines += [f"### {group}", ""] if len(groups) > 1 else []
        rows = [row for row in _with_means(content) if _group(row) == group]
        lines += _accuracies(rows, {_key(row): row for row in rows}, refused)
        lines += _differences([row for row in content.get("paired", ()) if _group(row) == group])
        lines += [""] if len(groups) > 1 else []
    lines += _over_data(content)
    lines += _checks(content)
    lines += _trainings(content)
    options = content.get("command") or re.sub(r" --(prompt-set|threat|eps|defense) \S+", "", results[0]["command"]) + " ..."
    return "\n".join([*lines, "", f"    {options}", ""])


def _of_defenses(content: Facts) -> bool:
    return len(content.get("defenses", ())) > 1


def _chart(name: str) -> str:
    return f"{name}-draws.svg"


def _about(results: Sequence[Facts]) -> list[str]:
    """What was measured on, each place with its seeds."""
    seeds: dict[tuple[str, str, int], set[int]] = {}
    for row in results:
        seeds.setdefault((row["backbone"], data_of(row), row["n"]), set()).add(row["seed"])
    words = {place: f"seed{'s' if len(own) > 1 else ''} {', '.join(map(str, sorted(own)))}" for place, own in seeds.items()}
    return sorted(f"{backbone}, {data}, {n} pictures, {words[backbone, data, n]}" for backbone, data, n in seeds)


def _with_means(content: Facts) -> list[Facts]:
    """A row a cell: the mean where several seeds were measured, else the one row."""
    means: list[Facts] = content.get("over_seeds", [])
    covered = {(*_cell(row), seed) for row in means for seed in row["seeds"]}
    return [*means, *(row for row in content["results"] if (*_cell(row), row["seed"]) not in covered)]


def _cell(row: Facts) -> tuple[str, ...]:
    return (_group(row), str(row.get("method")), row["defense"], condition(row))


def _accuracies(rows: Sequence[Facts], cells: dict[tuple[str, ...], Facts], refused: dict[tuple[str, ...], list[str]]) -> list[str]:
    conditions = list(dict.fromkeys(map(condition, rows)))
    lines = table(["prompt set", *conditions])
    for subject, row in _first(rows).items():
        own = [cells.get((_group(row), subject, name)) for name in conditions]
        lines.append(line([subject, *(_accuracy(cell, refused) for cell in own)]))
    return lines


def _first(rows: Sequence[Facts]) -> dict[str, Facts]:
    """A row of each subject, in the order of their appearance."""
    found: dict[str, Facts] = {}
    for row in rows:
        found.setdefault(_subject(row), row)
    return found


def _differences(paired: Sequence[Facts]) -> list[str]:
    if not paired:
        return []
    conditions = list(dict.fromkeys(map(condition, paired)))
    differences = {(_pair(row), condition(row)): row for row in paired}
    lines = ["", *table(["paired", *conditions])]
    pairs = dict.fromkeys(map(_pair, paired))
    return [*lines, *(line([pair, *(difference(differences.get((pair, name))) for name in conditions)]) for pair in pairs)]


def _over_data(content: Facts) -> list[str]:
    """Means over data sets, and their differences."""
    means: list[Facts] = content.get("over_data", [])
    if not means:
        return []
    lines = ["", f"### Means over {', '.join(dict.fromkeys(name for row in means for name in row['data']))}", ""]
    lines += _accuracies(means, {_key(row): row for row in means}, {})
    return [*lines, *_differences(content.get("paired_over_data", []))]


def _trainings(content: Facts) -> list[str]:
    """What each method of a table took, and what is not there."""
    trainings: list[Facts] = content.get("trainings", [])
    lines: list[str] = []
    if trainings:
        cap = f"{content['max_passes']:,}"
        lines = [
            "",
            f"Trainings, means over data sets and seeds; no method may take more than {cap} charged image passes (forward + 2 backward).",
            "",
        ]
        lines += table(["method", "trainings", "epochs", "charged passes", "text passes", "seconds"])
        for method in dict.fromkeys(row["method"] for row in trainings):
            own = [row for row in trainings if row["method"] == method]
            means = [sum(row[name] for row in own) / len(own) for name in ("epochs", "charged", "text_passes", "seconds")]
            lines.append(line([method, str(len(own)), *(f"{mean:,.0f}" for mean in means)]))
    gaps = [f"- not there: {row['method']}, {row['data']}, seed {row['seed']}: {row['why']}" for row in content.get("missing", ())]
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
        *(f"- {check['id']} {check['name']}: {_behind(check['prompt_set'], check)}, {data_of(check)}: {check['sentence']}." for check in fired),
    ]


def _group(row: Facts) -> str:
    return f"{row['backbone']}, {data_of(row)}"


def _key(row: Facts) -> tuple[str, ...]:
    return (_group(row), _subject(row), condition(row))


def _subject(row: Facts) -> str:
    return _behind(row.get("method", row["prompt_set"]), row)


def _pair(row: Facts) -> str:
    return _behind(f"{row['a'].split('@')[0]} - {row['b'].split('@')[0]}", row)


def _behind(name: str, row: Facts) -> str:
    return name if row["defense"] == "none" else f"{name} behind {row['defense']}"


def _headline(row: Facts) -> tuple[str, ...]:
    return (_group(row), _subject(row), row["eps"])


def _accuracy(row: Facts | None, refused: dict[tuple[str, ...], list[str]]) -> str:
    if row is None:
        return ""
    checks = refused.get(_headline(row), []) if row["threat"] == "T3" else []
    return f"inconclusive ({', '.join(checks)})" if checks else accuracy(row)


if __name__ == "__main__":
    sys.exit(main())
