"""The results page, made from committed JSON: `python -m training.results [--check]` (`make results`, `make results-check`).

Each `training/results/*.json` is what one `robustclip evaluate --json` printed, with a `title` and what it `says` added by hand. The page holds
nothing that is not in those files, so a number can't drift from the command that made it.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"
PAGE = Path(__file__).parent / "RESULTS.md"
_INTRODUCTION = """# Results

Made by `make results` from the JSON files in `results/`, which `robustclip evaluate --json` wrote; `make results-check` compares. Accuracy in per
cent with Wilson's 95 % interval. *Paired* is the difference on the same pictures, in points, with its bootstrap interval and McNemar's exact p; it is
bold where both exclude 0. `T0` attacks the image tower without prompts (blind to text, labels and defense), `T2` everything. Every row's own command
stands in its JSON.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Write the results page, or compare it with what the JSON files say."""
    parser = argparse.ArgumentParser(prog="python -m training.results", description=main.__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="the JSON files (default: %(default)s)")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page is not what the files make")
    arguments = parser.parse_args(argv)
    made = render({path.stem: json.loads(path.read_text()) for path in sorted(arguments.folder.glob("*.json"))})
    if not arguments.check:
        arguments.page.write_text(made)
    elif not arguments.page.is_file() or arguments.page.read_text() != made:
        print(f"{arguments.page.name} is not what {arguments.folder.name}/*.json make: run `make results`.", file=sys.stderr)
        return 1
    return 0


def render(found: dict[str, dict[str, Any]]) -> str:
    """The page, a section for each file in the order of their names."""
    return "\n".join([_INTRODUCTION, *(_section(name, content) for name, content in found.items())])


def _section(name: str, content: dict[str, Any]) -> str:
    results: list[dict[str, Any]] = content["results"]
    conditions = list(dict.fromkeys(_condition(row) for row in results))
    about = sorted({f"{row['backbone']}, {row['data']} {row['split']}, {row['n']} pictures, seed {row['seed']}" for row in results})
    cells = {(_subject(row), _condition(row)): row for row in results}
    lines = [f"## {content['title']}", "", f"{'; '.join(about)} (`results/{name}.json`).", "", content["says"], ""]
    lines += _table(["prompt set", *conditions])
    for subject in dict.fromkeys(_subject(row) for row in results):
        lines.append(_line([subject, *(_accuracy(cells.get((subject, condition))) for condition in conditions)]))
    if paired := content.get("paired"):
        differences = {(_pair(row), _condition(row)): row for row in paired}
        lines += ["", *_table(["paired", *conditions])]
        for pair in dict.fromkeys(_pair(row) for row in paired):
            lines.append(_line([pair, *(_difference(differences.get((pair, condition))) for condition in conditions)]))
    options = re.sub(r" --(prompt-set|threat|eps|defense) \S+", "", results[0]["command"])
    return "\n".join([*lines, "", f"    {options} ...", ""])


def _condition(row: dict[str, Any]) -> str:
    return row["threat"] if row["threat"] == "clean" else f"{row['threat']} {row['eps']}"


def _subject(row: dict[str, Any]) -> str:
    return row["prompt_set"] if row["defense"] == "none" else f"{row['prompt_set']} behind {row['defense']}"


def _pair(row: dict[str, Any]) -> str:
    names = f"{row['a'].split('@')[0]} - {row['b'].split('@')[0]}"
    return names if row["defense"] == "none" else f"{names} behind {row['defense']}"


def _accuracy(row: dict[str, Any] | None) -> str:
    return "" if row is None else f"{100 * row['accuracy']:.1f} ({100 * row['low']:.1f} to {100 * row['high']:.1f})"


def _difference(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    text = f"{100 * row['difference']:+.1f} ({100 * row['low']:+.1f} to {100 * row['high']:+.1f}; p {row['mcnemar']:.2g})"
    return f"**{text}**" if (row["low"] > 0 or row["high"] < 0) and row["mcnemar"] < 0.05 else text


def _table(names: Sequence[str]) -> list[str]:
    return [_line(names), _line(["---"] * len(names))]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
