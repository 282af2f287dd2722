"""What `robustclip select` measured as a section of the results page: a line for each candidate, a column for
each data set.
"""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any, TypeAlias

from training.measuring.pages.markdown import line, table
from training.measuring.pages.wording import difference, seeds_words

Facts: TypeAlias = dict[str, Any]


def selection_section(name: str, content: Facts) -> str:
    """The section of `results/NAME.json`."""
    candidates: list[Facts] = content["candidates"]
    numbers: list[Facts] = [number for candidate in candidates for number in candidate["numbers"]]
    data = list(dict.fromkeys(judged["data"] for judged in content["judged_on"]))
    level = next((number["threat"] for number in numbers if number["threat"] != "clean"), "T2")
    lines = [
        f"## {content['title']}",
        "",
        f"{_about(content, numbers, level)} (`results/{name}.json`).",
        "",
        content["says"],
        "",
    ]
    lines += table(
        [
            "",
            "candidate",
            *(f"{place}: clean, {level}" for place in data),
            "mean of clean",
            f"mean of {level}",
            "ahead of the first",
        ]
    )
    for candidate in candidates:
        found = [_means(candidate["numbers"], place, level) for place in data]
        cells = ["" if place is None else f"{place['clean']:.1f}, {place[level]:.1f}" for place in found]
        over = [
            f"{mean(place[threat] for place in found if place):.1f}" if all(found) else ""
            for threat in ("clean", level)
        ]
        chosen = "chosen" if candidate["settings"] == content["chosen"] else ""
        ahead: Facts | None = candidate["ahead"] and {
            "difference": candidate["ahead"]["value"],
            **candidate["ahead"],
            "mcnemar": None,
        }
        last = difference(ahead) if candidate["why"] is None else f"failed: {candidate['why']}"
        lines.append(line([chosen, _settings(candidate, candidates[0]), *cells, *over, last]))
    return "\n".join([*lines, "", f"    {content['command']}", ""])


def _about(content: Facts, numbers: Sequence[Facts], level: str) -> str:
    judged = ", ".join(f"{judged['n']} of {judged['data']}" for judged in content["judged_on"])
    radii = ", ".join(dict.fromkeys(number["eps"] for number in numbers if number["threat"] == level))
    cap = f", at most {content['max_passes']:,} charged image passes each" if content["max_passes"] else ""
    steps = f" with {content['steps']} steps" if level == "T2" else ""
    attack = f"{level} at {radii}{steps}" if radii else "never measured"
    return (
        f"Chosen on held-out training pictures ({judged}): clean, {attack}; {content['shots']} shots, "
        f"{seeds_words(content['seeds'])}{cap}"
    )


def _settings(candidate: Facts, first: Facts) -> str:
    """All settings of the first, of others what they have differently."""
    own: Mapping[str, Any] = candidate["settings"]
    told = {
        name: value
        for name, value in own.items()
        if candidate is first or value != first["settings"].get(name)
    }
    return ", ".join(
        f"{name} {'none' if value is None or value == '' else _value(value)}" for name, value in told.items()
    )


def _value(value: object) -> str:
    return (
        f"{value:g}"
        if isinstance(value, float)
        else str(value).lower()
        if isinstance(value, bool)
        else str(value)
    )


def _means(numbers: Sequence[Facts], data: str, level: str) -> dict[str, float] | None:
    """Per cent, means over seeds; None where nothing was measured."""
    own = [row for row in numbers if row["data"] == data]
    return (
        {
            threat: 100 * mean(row["accuracy"] for row in own if row["threat"] == threat)
            for threat in ("clean", level)
        }
        if own
        else None
    )
