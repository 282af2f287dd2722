"""How rows of numbers are said on the results page and on a terminal."""

from collections.abc import Collection, Iterable, Mapping

from training.measuring.schema.base import Difference
from training.measuring.schema.evaluation import Illusion
from training.measuring.schema.files import Gap
from training.measuring.schema.rows import (
    UNUSUAL,
    Condition,
    Mean,
    MeanOverData,
    OverData,
    Paired,
    PairedOverData,
    Result,
)

FEW = 64  # pictures: of fewer a percentage would say more than was measured


def seeds_words(seeds: Collection[int]) -> str:
    """Which seeds."""
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def absent(gaps: Iterable[Gap]) -> list[str]:
    """A sentence for each thing that can't be had, with its reason, and one for all that was only not done
    yet.
    """
    said: list[str] = []
    to_come: dict[str, set[int]] = {}
    for gap in gaps:
        if gap.pending:
            to_come.setdefault(gap.data, set()).add(gap.seed)
        else:
            said.append(f"not there: {gap.method}, {gap.data}, seed {gap.seed}: {gap.why}")
    places = ", ".join(f"{data} ({seeds_words(sorted(seeds))})" for data, seeds in to_come.items())
    return [*said, *([f"still to come, all or in part: {places}"] if places else [])]


def condition(line: Condition) -> str:
    """The column that a row stands in: threat level and radius, and what the attack took where that is not
    the level's own.
    """
    return attacked(line, " " + line.eps if line.threat != "clean" else "")


def attacked(line: Condition, radius: str = "") -> str:
    """The threat level, and what the attack took where that is not the level's own."""
    return ", ".join(filter(None, [line.threat + radius, effort(line.unusual)]))


def effort(taken: Mapping[str, object], *, without: Collection[str] = ()) -> str:
    """What an attack took, by the names of `UNUSUAL`."""
    said = [(taken[name], words) for name, words in UNUSUAL.items() if name in taken and name not in without]
    return ", ".join(words.format(value).removesuffix("s" if value == 1 else "") for value, words in said)


def accuracy(row: Result | Mean | MeanOverData) -> str:
    """Per cent with the interval, or of few pictures how many of them."""
    outcomes = _few(row)
    abstained = row.abstained if isinstance(row, Result) else None
    if outcomes is not None:
        silent = "" if abstained is None else f"; abstained {round(abstained * outcomes)}"
        return f"{round(row.accuracy * outcomes)}/{outcomes}{silent}"
    deviation = f"; sd {100 * row.deviation:.1f}" if isinstance(row, Mean) else ""
    silent = "" if abstained is None else f"; abstained {100 * abstained:.1f}"
    return f"{100 * row.accuracy:.1f} ({100 * row.low:.1f} to {100 * row.high:.1f}{deviation}{silent})"


def difference(
    gap: Difference, row: Paired | PairedOverData | Illusion | None = None, *, claimed: bool = True
) -> str:
    """Points with the interval and, where there is one, the p-value, bold where both exclude 0; of few
    pictures, which the `row` tells, how many of them.

    One that is not `claimed` is never bold.
    """
    test = "" if gap.mcnemar is None else f"; p {gap.mcnemar:.2g}"
    outcomes = None if row is None else _few(row)
    if outcomes is not None:
        text = f"{round(gap.difference * outcomes):+d} of {outcomes}{test.replace(';', ',')}"
    else:
        text = f"{100 * gap.difference:+.1f} ({100 * gap.low:+.1f} to {100 * gap.high:+.1f}{test})"
    return f"**{text}**" if claimed and gap.decided else text


def _few(row: Result | Mean | Paired | Illusion | OverData) -> int | None:
    """Outcomes that are counted because pictures are few: one for each of them and each seed."""
    if isinstance(row, OverData) or row.n >= FEW:
        return None
    return row.n * max(1, len(row.seeds))
