"""Tables of rows for the results page: a line a prompt set or a pair of them, a column a condition, with what
a column's cells have in common.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from training.measuring.pages.markdown import line, table
from training.measuring.pages.wording import accuracy, condition, data_of, difference, rank, seeds_words

Facts: TypeAlias = dict[str, Any]
Refused: TypeAlias = Mapping[tuple[str, ...], Sequence[str]]  # by `headline`: the checks that forbid it


class Column(NamedTuple):
    """Rows of one condition on as many pictures: where a table measures some levels on fewer, they are no one
    column.
    """

    condition: str
    pictures: int


def accuracies(rows: Sequence[Facts], refused: Refused) -> list[str]:
    """Heads tell pictures and seeds where columns differ in them, a cell its seeds where it lacks one of its
    column's.
    """
    seeds: dict[Column, dict[int, None]] = {}
    for row in sorted(rows, key=rank):
        seeds.setdefault(_column(row), {}).update(dict.fromkeys(_seeds(row)))
    differ = len(set(map(frozenset, seeds.values()))) > 1
    heads = [
        head + (f", {seeds_words(own)}" if differ else "")
        for head, own in zip(_heads(seeds), seeds.values(), strict=True)
    ]
    cells = {(subject(row), _column(row)): _cell(row, refused, seeds[_column(row)]) for row in rows}
    subjects = dict.fromkeys(map(subject, rows))
    return [
        *table(["prompt set", *heads]),
        *(line([name, *(cells.get((name, column), "") for column in seeds)]) for name in subjects),
    ]


def differences(paired: Sequence[Facts]) -> list[str]:
    """Nothing where nothing is compared."""
    if not paired:
        return []
    columns = list(dict.fromkeys(map(_column, sorted(paired, key=rank))))
    cells = {(_pair(row), _column(row)): difference(row) for row in paired}
    pairs = dict.fromkeys(map(_pair, paired))
    lines = ["", *table(["paired", *_heads(columns)])]
    return [*lines, *(line([pair, *(cells.get((pair, column), "") for column in columns)]) for pair in pairs)]


def group(row: Facts) -> str:
    """The pictures and the tower that a table is about."""
    return f"{row['backbone']}, {data_of(row)}"


def subject(row: Facts) -> str:
    """The line that a row stands in."""
    return behind(row.get("method", row["prompt_set"]), row)


def behind(name: str, row: Facts) -> str:
    """A prompt set's name with the defense that it stands behind."""
    return name if row["defense"] == "none" else f"{name} behind {row['defense']}"


def headline(row: Facts) -> tuple[str, ...]:
    """What a headline is about."""
    return (group(row), subject(row), row["eps"])


def _column(row: Facts) -> Column:
    return Column(condition(row), row["n"] if "n" in row else sum(row["n_each"]))


def _heads(columns: Collection[Column]) -> list[str]:
    differ = len({column.pictures for column in columns}) > 1
    return [column.condition + (f", {column.pictures:,} pictures" if differ else "") for column in columns]


def _seeds(row: Facts) -> Sequence[int]:
    return row["seeds"] if "seeds" in row else [row["seed"]]


def _pair(row: Facts) -> str:
    return behind(f"{row['a'].split('@')[0]} - {row['b'].split('@')[0]}", row)


def _cell(row: Facts, refused: Refused, seeds: Collection[int]) -> str:
    checks = refused.get(headline(row), ()) if row["threat"] == "T3" else ()
    words = f"inconclusive ({', '.join(checks)})" if checks else accuracy(row)
    return words if set(_seeds(row)) == set(seeds) else f"{words}; {seeds_words(_seeds(row))}"
