"""Tables of rows for the results page: a line for each prompt set or pair of them, a column for each
condition.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from training.measuring.pages.markdown import grid
from training.measuring.pages.wording import accuracy, condition, difference, seeds_words
from training.measuring.schema.evaluation import Headline
from training.measuring.schema.rows import Mean, MeanOverData, Paired, PairedOverData, Result

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
