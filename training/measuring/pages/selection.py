"""What `robustclip select` measured as a section of the results page: a line for each candidate, a column for
each data set.
"""

from collections.abc import Sequence
from statistics import mean

from training.measuring.pages.wording import difference, line, section, seeds_words, table
from training.measuring.schema.files import Candidate, Number, SelectionFile


def selection_section(name: str, content: SelectionFile) -> str:
    """The section of `results/NAME.json`."""
    level = content.level
    data = list(dict.fromkeys(judged.data for judged in content.judged_on))
    lines = table(
        [
            "",
            "candidate",
            *(f"{place}: clean, {level}" for place in data),
            "mean of clean",
            f"mean of {level}",
            "ahead of the first",
        ]
    )
    first = content.candidates[0]
    for candidate in content.candidates:
        found = [_means(candidate.numbers, place, level) for place in data]
        cells = ["" if place is None else f"{place['clean']:.1f}, {place[level]:.1f}" for place in found]
        over = [
            f"{mean(place[threat] for place in found if place):.1f}" if all(found) else ""
            for threat in ("clean", level)
        ]
        chosen = "chosen" if candidate.settings == content.chosen else ""
        ahead = "" if candidate.ahead is None else difference(candidate.ahead.difference)
        last = ahead if candidate.why is None else f"failed: {candidate.why}"
        lines.append(line([chosen, _settings(candidate, first), *cells, *over, last]))
    return section(name, content.title, _about(content), content.says, [*lines, "", f"    {content.command}"])


def _about(content: SelectionFile) -> str:
    level = content.level
    judged = ", ".join(f"{judged.n} of {judged.data}" for judged in content.judged_on)
    numbers = (number for candidate in content.candidates for number in candidate.numbers)
    radii = ", ".join(dict.fromkeys(number.eps for number in numbers if number.threat == level))
    cap = f", at most {content.max_passes:,} charged image passes each" if content.max_passes else ""
    steps = f" with {content.steps} steps" if level == "T2" else ""
    attack = f"{level} at {radii}{steps}" if radii else "never measured"
    return (
        f"Chosen on held-out training pictures ({judged}): clean, {attack}; {content.shots} shots, "
        f"{seeds_words(content.seeds)}{cap}"
    )


def _settings(candidate: Candidate, first: Candidate) -> str:
    """All settings of the first, of others what they have differently."""
    return ", ".join(
        f"{name} {_value(value)}"
        for name, value in candidate.settings.items()
        if candidate is first or value != first.settings.get(name)
    )


def _value(value: object) -> str:
    if value is None or value == "":
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _means(numbers: Sequence[Number], data: str, level: str) -> dict[str, float] | None:
    """Per cent, means over seeds; None where nothing was measured."""
    own = [number for number in numbers if number.data == data]
    return (
        {
            threat: 100 * mean(number.accuracy for number in own if number.threat == threat)
            for threat in ("clean", level)
        }
        if own
        else None
    )
