"""Tables and sections as Markdown, for the page that is made from committed JSON."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

Column = TypeVar("Column")


def table(names: Sequence[str]) -> list[str]:
    """The two lines that open a table."""
    return [line(names), line(["---"] * len(names))]


def line(cells: Sequence[str]) -> str:
    """One row."""
    return f"| {' | '.join(cells)} |"


def grid(
    heads: Sequence[str], columns: Iterable[Column], cells: Mapping[tuple[str, Column], str]
) -> list[str]:
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
