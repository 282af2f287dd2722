"""Shares as bars, in HTML for a notebook: no script and no style sheet."""

from collections.abc import Sequence
from typing import NamedTuple

from robustclip.reports.html import render


class Bar(NamedTuple):
    """One row: what it is, how much of 1 it has, and that in words."""

    label: str
    share: float
    words: str


def bars(title: str, rows: Sequence[Bar]) -> str:
    """A table with a bar a row, drawn in the text's own color."""
    widths = [f"{100 * min(max(row.share, 0), 1):.1f}%" for row in rows]
    return render("bars.html", title=title, rows=list(zip(rows, widths, strict=True)))
