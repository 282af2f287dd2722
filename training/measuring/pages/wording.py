"""Rows of numbers in words, for the results page and the terminal, and as tables of Markdown: a line for each
prompt set or pair of them, a column for each condition.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias, TypeVar

from training.measuring.schema.base import Difference
from training.measuring.schema.evaluation import (
    UNUSUAL,
    Condition,
    Headline,
    Illusion,
    Mean,
    MeanOverData,
    OverData,
    Paired,
    PairedOverData,
    Result,
)
from training.measuring.schema.files import Gap

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


Place = TypeVar("Place")


def table(names: Sequence[str]) -> list[str]:
    """The two lines that open a table."""
    return [line(names), line(["---"] * len(names))]


def line(cells: Sequence[str]) -> str:
    """One row."""
    return f"| {' | '.join(cells)} |"


def grid(heads: Sequence[str], columns: Iterable[Place], cells: Mapping[tuple[str, Place], str]) -> list[str]:
    """A whole table of cells by line and column: lines in the order in which they first appear, empty where
    there is no cell.
    """
    columns = list(columns)
    names = dict.fromkeys(name for name, _ in cells)
    rows = (line([name, *(cells.get((name, column), "") for column in columns)]) for name in names)
    return [*table(heads), *rows]


def section(name: str, title: str, about: str, says: str, lines: Sequence[str]) -> str:
    """The section of `results/NAME.json`: what it is about, what it says, and its tables."""
    return "\n".join([f"## {title}", "", f"{about} (`results/{name}.json`).", "", says, "", *lines, ""])


Row: TypeAlias = Result | Mean | MeanOverData
AnyPair: TypeAlias = Paired | PairedOverData
Refused: TypeAlias = Mapping[tuple[str, ...], Sequence[str]]  # by `headline`: the checks that forbid it


class Column(NamedTuple):
    """Rows of one condition on the same number of pictures."""

    condition: str
    pictures: int


def accuracies(rows: Sequence[Row], refused: Refused) -> list[str]:
    """Heads name pictures and seeds where columns differ in them; a cell names its seeds where it lacks some
    of its column's.
    """
    seeds: dict[Column, dict[int, None]] = {}
    for row in sorted(rows, key=lambda row: row.rank):
        seeds.setdefault(_column(row), {}).update(dict.fromkeys(row.seeds))
    differ = len(set(map(frozenset, seeds.values()))) > 1
    heads = [
        head + (f", {seeds_words(own)}" if differ else "")
        for head, own in zip(_heads(seeds), seeds.values(), strict=True)
    ]
    cells = {(row.title, _column(row)): _cell(row, refused, seeds[_column(row)]) for row in rows}
    return grid(["prompt set", *heads], seeds, cells)


def differences(paired: Sequence[AnyPair]) -> list[str]:
    """Nothing where nothing is compared."""
    if not paired:
        return []
    columns = list(dict.fromkeys(map(_column, sorted(paired, key=lambda pair: pair.rank))))
    cells = {(pair.behind(pair.sets), _column(pair)): difference(pair, pair) for pair in paired}
    return ["", *grid(["paired", *_heads(columns)], columns, cells)]


def headline(row: Headline | Result | Mean) -> tuple[str, ...]:
    """What a headline is about."""
    return (row.group, row.title, row.eps)


def _column(row: Row | AnyPair) -> Column:
    return Column(condition(row), row.n)


def _heads(columns: Collection[Column]) -> list[str]:
    differ = len({column.pictures for column in columns}) > 1
    return [column.condition + (f", {column.pictures:,} pictures" if differ else "") for column in columns]


def _cell(row: Row, refused: Refused, seeds: Collection[int]) -> str:
    checks: Sequence[str] = ()
    if row.threat == "T3" and not isinstance(row, MeanOverData):
        checks = refused.get(headline(row), ())
    words = f"inconclusive ({', '.join(checks)})" if checks else accuracy(row)
    return words if set(row.seeds) == set(seeds) else f"{words}; {seeds_words(row.seeds)}"
