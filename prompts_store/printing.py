"""What `robustclip prompts` prints: a version's facts, tables, and JSON."""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # it imports torch
    from prompts_store.shelf import StoredVersion


def facts(stored: "StoredVersion") -> dict[str, Any]:
    return {
        "ref": str(stored.ref),
        "name": stored.ref.name,
        "version": stored.ref.version,
        "state": stored.state,
        "reason": stored.reason,
        "message": stored.message,
        "bytes": stored.bytes,
        "tensors": dict(stored.shapes),
        "created_at": stored.created_at.isoformat() if stored.created_at else None,
        "manifest": stored.manifest.model_dump(mode="json") if stored.manifest else None,
    }


def measured(stored: "StoredVersion") -> str:
    """Accuracies on test pictures; on other splits with the split's name."""
    results = stored.manifest.results if stored.manifest else ()
    return ", ".join(
        f"{one.data}{'' if one.split == 'test' else f' {one.split}'} "
        f"{one.threat}{'' if one.eps == '0' else f' {one.eps}'} {100 * one.accuracy:.1f} %"
        for one in results
    )


def text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_answer(data: dict[str, Any], sentence: str, *, as_json: bool) -> None:
    """Print the data as JSON if asked to, else the sentence."""
    if as_json:
        print_json(data)
    else:
        print(sentence)


def print_table(
    heads: tuple[str, ...], rows: Sequence[tuple[str, ...]], title: str, *, folded: int = 1
) -> None:
    """`folded`: how many of the last columns wrap on a narrow terminal."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left", show_header=any(heads))
    for index, head in enumerate(heads):  # users copy names and versions from here: those don't wrap
        table.add_column(head, no_wrap=index < len(heads) - folded, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
