"""What `robustclip certified` found as a section of the results page: a column for each smoothed rule, a line
for each thing that was counted.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

from training.measuring.pages.markdown import line, table

Facts: TypeAlias = dict[str, Any]


def certified_section(name: str, content: Facts) -> str:
    """The section of `results/NAME.json`."""
    results: list[Facts] = content["results"]
    about = sorted({_about(row) for row in results})
    lines = [
        f"## {content['title']}",
        "",
        f"{'; '.join(about)} (`results/{name}.json`).",
        "",
        content["says"],
        "",
    ]
    lines += table(["per cent of all pictures", *map(rule_words, results)])
    lines += [
        line([label, *(cells.get(label, "") for cells in map(counted, results))])
        for label in _labels(results)
    ]
    return "\n".join([*lines, "", *(f"    {row['command']}" for row in results), ""])


def counted(row: Facts) -> dict[str, str]:
    """What was counted of one smoothed rule, by its name, in the order in which to read it."""
    cells = {
        f"right by {row['votes']:,} votes": _share(row["right"]),
        f"no answer by {row['votes']:,} votes": _share(row["abstained"]),
        "certified, radius above 0": _share(row["certified"]),
    }
    cells |= {f"right within L2 {part['l2']:g} (Linf {part['linf']})": _share(part) for part in row["within"]}
    for part in row.get("attacks", ()):
        interval = f" ({100 * part['low']:.1f} to {100 * part['high']:.1f} %)" if part["n"] else ""
        cells[f"fell to an attack at {part['factor']:g} of the {part['norm'].capitalize()} radius"] = (
            f"{part['fell']} of {part['n']}{interval}"
        )
    if "direct" in row:
        cells["same votes without the kept embeddings"] = f"{row['direct']['same']} of {row['direct']['n']}"
    return cells


def rule_words(row: Facts) -> str:
    """The smoothed rule in words: who decides, and under how much noise."""
    denoised = {None: "not denoised", "own": "denoised"}.get(row["denoise"], f"denoised by {row['denoise']}")
    behind = "" if row["defense"] == "none" else f", then {row['defense']}"
    return f"{row['prompt_set']}, sigma {row['sigma']:g}, {denoised}{behind}"


def _about(row: Facts) -> str:
    classes = f" ({row['classes']} among {row['among']})" if "classes" in row else ""
    votes = (
        f"{row['votes']:,} votes after {row['choosing']:,} that choose the label, alpha "
        f"{row['alpha']:g} a picture"
    )
    reach = f"so radii of at most {row['ceiling_l2']:.3g}"
    return (
        f"{row['backbone']}, {row['data']} {row['split']}{classes}, {row['n']} pictures, seed "
        f"{row['seed']}, sigma {row['sigma']:g}: {votes}, {reach}"
    )


def _labels(results: Sequence[Facts]) -> list[str]:
    return list(dict.fromkeys(label for row in results for label in counted(row)))


def _share(part: Facts) -> str:
    return f"{100 * part['share']:.1f} ({100 * part['low']:.1f} to {100 * part['high']:.1f})"
