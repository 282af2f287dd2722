"""Tables as Markdown, for the pages that are made from committed JSON. No tensors, so that a page is made in
no time.
"""

from collections.abc import Sequence


def table(names: Sequence[str]) -> list[str]:
    """The two lines that open a table."""
    return [line(names), line(["---"] * len(names))]


def line(cells: Sequence[str]) -> str:
    """One row."""
    return f"| {' | '.join(cells)} |"
