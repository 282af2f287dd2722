"""Shares as bars, in HTML for a notebook: no script, no style sheet, and every word escaped."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple


class Bar(NamedTuple):
    """One row: what it is, how much of 1 it has, and that in words."""

    label: str
    share: float
    words: str


def bars(title: str, rows: Sequence[Bar]) -> str:
    """A table with a bar a row, drawn in the text's own color."""
    cells = "".join(
        f'<tr><th scope="row" style="text-align:left">{escape(row.label)}</th><td style="width:16em">'
        f'<div style="width:{100 * min(max(row.share, 0), 1):.1f}%;height:0.8em;background:currentColor;'
        f'opacity:0.6"></div></td><td>{escape(row.words)}</td></tr>'
        for row in rows
    )
    return f"<table><caption>{escape(title)}</caption>{cells}</table>"
