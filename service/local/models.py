"""`robustclip models`: what can be loaded, what it can do, and what it costs."""

import argparse
import fnmatch
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from robustclip.errors import InvalidInput
from service.local.deployed import parser_of

if TYPE_CHECKING:
    from robustclip.models.listing import Architecture

_EXAMPLES = """examples:
  robustclip models                        embedded, hardened, and every architecture (about a minute)
  robustclip models 'ViT-B-*' --pace       these alone, and how fast they are on this machine
  robustclip models ViT-B-16-SigLIP --json

Memory is that of float32 weights, and of a gradient pass for each picture (a probe takes four at once).
--backbone NAME --pretrained TAG loads one, in every command; ROBUSTCLIP_CLIP__ARCH and
ROBUSTCLIP_CLIP__PRETRAINED for `robustclip serve`.
"""


_CAPABILITIES = ("words", "text prompts", "visual prompts")


def main(argv: Sequence[str] | None = None) -> int:
    """List the CLIPs that can be loaded, with what each can do and costs."""
    parser = parser_of("models", main.__doc__, _EXAMPLES)
    parser.add_argument("patterns", nargs="*", metavar="NAME", help="names or patterns; default: all")
    parser.add_argument(
        "--pace", action="store_true", help="time pictures and gradient passes, with random weights"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    rows = _rows(arguments)
    hardened = [] if arguments.patterns else _hardened()
    if arguments.json:
        print(json.dumps({"architectures": rows, "hardened": hardened}, indent=2))
    else:
        _show(rows, hardened)
    return 0


def _rows(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    from robustclip.backbones import embedded_names, terms_of
    from robustclip.models.listing import architecture, architecture_names, embedded

    names = [*embedded_names(), *architecture_names()]
    patterns: list[str] = arguments.patterns or ["*"]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise InvalidInput(
                f"no CLIP is named {pattern!r}.",
                field="NAME",
                help="Use an embedded CLIP, an open_clip architecture such as ViT-B-32, or a pattern such as "
                "'ViT-B-*'.",
            )
    chosen = [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    rows: list[dict[str, Any]] = []
    console = Console(stderr=True)
    for name in track(chosen, "building", console=console, disable=not sys.stderr.isatty(), transient=True):
        own = name in embedded_names()
        found = embedded(name) if own else architecture(name)
        rows.append(_facts(found, pace=arguments.pace) | {"terms": terms_of(name) if own else None})
    return rows


def _facts(found: "Architecture", *, pace: bool) -> dict[str, Any]:
    from robustclip.models.listing import here, measured

    facts = asdict(found) | {
        "capabilities": found.capabilities.names,
        "reasons": {name: reason for name, reason in found.capabilities.reasons.items() if reason},
        "weights_here": here(found),
    }
    if pace:
        facts["pace"] = None if (timed := measured(found)) is None else asdict(timed)
    return facts


def _hardened() -> list[dict[str, Any]]:
    from robustclip.models.published import HARDENED

    return [asdict(each) for each in HARDENED]


def _show(rows: list[dict[str, Any]], hardened: list[dict[str, Any]]) -> None:
    from robustclip.models.costs import size_text

    console = Console()
    table = Table(title="CLIPs that can be loaded: --backbone NAME --pretrained TAG", box=None)
    table.add_column("name", overflow="fold")
    for column in ("pixels", "tokens", "weights", "gradient", "words", "text", "visual"):
        table.add_column(column, justify="right", no_wrap=True)
    timed = any("pace" in row for row in rows)
    for column in ("forward/s", "gradient/s") if timed else ():
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("tags; * is here", overflow="fold")
    for row in rows:
        memory = row["memory"] or {}
        can = ["yes" if name in row["capabilities"] else "no" for name in _CAPABILITIES]
        pace = row.get("pace") or {}
        speeds = [f"{pace[kind]:.1f}" if pace else "-" for kind in ("forward", "gradient")]
        table.add_row(
            row["name"],
            str(row["image_size"] or "-"),
            str(row["context_length"] or "-"),
            size_text(memory.get("weights")),
            size_text(memory.get("gradient")),
            *can,
            *(speeds if timed else []),
            _tags(row, shown=None if len(rows) == 1 else 2),
        )
    console.print(table)
    console.print("words: hand-written templates; text, visual: learned prompts in that tower", style="dim")
    if len(rows) == 1:
        for name, reason in rows[0]["reasons"].items():
            console.print(f"no {name}: {reason}")
    if hardened:
        second = Table(title="Hardened by others, not tried by us", box=None)
        for column in ("name", "--backbone", "--pretrained", "terms", "source"):
            second.add_column(column, overflow="fold")
        for each in hardened:
            second.add_row(*each.values())
        console.print(second)
        console.print(
            "classify, probe, certify, evaluate, train, harden, export-onnx and serve load each.", style="dim"
        )


def _tags(row: dict[str, Any], *, shown: int | None) -> str:
    if not row["tags"]:
        return "ships with robustclip"
    marked = [tag + "*" * (tag in row["weights_here"]) for tag in row["tags"]]
    marked.sort(key=lambda tag: not tag.endswith("*"))
    more = 0 if shown is None else len(marked) - shown
    return ", ".join(marked[:shown]) + (f" and {more} more" if more > 0 else "")
