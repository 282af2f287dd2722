"""How rows of numbers are said on the results page. No tensors, so that the page is made in no time."""

from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from typing import Any, TypeAlias

from training.measuring.pages.difference import decided
from training.threats import THREAT_LEVELS

Facts: TypeAlias = Mapping[str, Any]

FEW = 64  # pictures: of fewer a percentage would say more than was measured
# What a row names where an attack took other than the level's own, and how it is said.
UNUSUAL = {
    "steps": "{} steps",
    "queries": "{} queries",
    "restarts": "{} starts",
    "draws": "{} draws",
    "search": "searched in {}",
}


def rank(row: Facts) -> tuple[int, Fraction]:
    """Where a condition stands among others: by what the attacker knows, then by the radius."""
    return [*THREAT_LEVELS].index(row["threat"]), Fraction(row["eps"])


def data_of(row: Facts) -> str:
    """Data set and split, and which of its classes."""
    return f"{row['data']} {split_of(row)}"


def split_of(row: Facts) -> str:
    """Split, and which of its classes."""
    return row["split"] + (f" ({row['classes']} among {row['among']})" if "classes" in row else "")


def seeds_words(seeds: Collection[int]) -> str:
    """Which seeds."""
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def absent(gaps: Sequence[Facts]) -> list[str]:
    """A sentence for each thing that can't be had, with its reason, and one for all that was only not done
    yet.
    """
    said = [
        f"not there: {gap['method']}, {gap['data']}, seed {gap['seed']}: {gap['why']}"
        for gap in gaps
        if not gap.get("pending")
    ]
    to_come: dict[str, set[int]] = {}
    for gap in gaps:
        if gap.get("pending"):
            to_come.setdefault(gap["data"], set()).add(gap["seed"])
    places = ", ".join(f"{data} ({seeds_words(sorted(seeds))})" for data, seeds in to_come.items())
    return [*said, *([f"still to come, all or in part: {places}"] if places else [])]


def condition(row: Facts) -> str:
    """The column that a row stands in: threat level and radius, and what the attack took where that is not
    the level's own.
    """
    return attacked(row, " " + row["eps"] if row["threat"] != "clean" else "")


def attacked(row: Facts, radius: str = "") -> str:
    """The threat level, and what the attack took where that is not the level's own."""
    return ", ".join(filter(None, [row["threat"] + radius, effort(row)]))


def effort(row: Facts, *, without: Collection[str] = ()) -> str:
    """What the attack took, where that is not the level's own."""
    said = [(row[name], words) for name, words in UNUSUAL.items() if name in row and name not in without]
    return ", ".join(words.format(taken).removesuffix("s" if taken == 1 else "") for taken, words in said)


def accuracy(row: Facts) -> str:
    """Per cent with the interval, or of few pictures how many of them."""
    if row.get("n", FEW) < FEW:
        total = row["n"] * len(row.get("seeds", "1"))
        silent = f"; abstained {round(row['abstained'] * total)}" if "abstained" in row else ""
        return f"{round(row['accuracy'] * total)}/{total}{silent}"
    deviation = f"; sd {100 * row['deviation']:.1f}" if "deviation" in row else ""
    silent = f"; abstained {100 * row['abstained']:.1f}" if "abstained" in row else ""
    return (
        f"{100 * row['accuracy']:.1f} ({100 * row['low']:.1f} to {100 * row['high']:.1f}{deviation}{silent})"
    )


def difference(row: Facts | None, *, claimed: bool = True) -> str:
    """Points with the interval and, where there is one, the p-value, bold where both exclude 0; of few
    pictures how many of them.

    One that is not `claimed` is never bold.
    """
    if row is None:
        return ""
    test = "" if row["mcnemar"] is None else f"; p {row['mcnemar']:.2g}"
    if row.get("n", FEW) < FEW:
        total = row["n"] * len(row.get("seeds", "1"))
        text = f"{round(row['difference'] * total):+d} of {total}{test.replace(';', ',')}"
    else:
        text = f"{100 * row['difference']:+.1f} ({100 * row['low']:+.1f} to {100 * row['high']:+.1f}{test})"
    return f"**{text}**" if claimed and decided(row) else text
