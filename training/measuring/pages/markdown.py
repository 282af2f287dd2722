"""Tables and sections as Markdown, for the page that is made from committed JSON."""

from collections.abc import Sequence


def table(names: Sequence[str]) -> list[str]:
    """The two lines that open a table."""
    return [line(names), line(["---"] * len(names))]


def line(cells: Sequence[str]) -> str:
    """One row."""
    return f"| {' | '.join(cells)} |"


def section(name: str, title: str, about: str, says: str, lines: Sequence[str]) -> str:
    """The section of `results/NAME.json`: what it is about, what it says, and its tables."""
    return "\n".join([f"## {title}", "", f"{about} (`results/{name}.json`).", "", says, "", *lines, ""])
