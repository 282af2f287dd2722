"""`robustclip prompts`: look into a store and move its pointers. A running service follows within a
second.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustclip import DEFAULT_BACKBONE
from robustclip.errors import InvalidInput

if TYPE_CHECKING:  # these import torch, and --help must not wait for it
    from prompts_store.shelf import StoredVersion
    from prompts_store.store import PromptStore
    from robustclip.models.clip import Clip

DEFAULT_STORE = "var/prompts"
_ENVIRONMENT = "ROBUSTCLIP_STORE__PATH"
_FINDINGS = 1

_EXAMPLES = """examples:
  robustclip prompts list
  robustclip prompts show caltech-advpt
  robustclip prompts activate caltech-advpt@3f9c21d07b1e
  robustclip prompts rollback caltech-advpt
  robustclip prompts copy main-caltech-101-capt-2@3f9c21d07b1e --to /srv/prompts --name caltech-101-capt \\
      --activate
  robustclip prompts copy main-caltech-101-capt-2@3f9c21d07b1e --results training/results/main.json \\
      --name caltech-101-capt
  robustclip prompts verify --backbone ViT-B-32 --pretrained laion2b_s34b_b79k
  robustclip prompts prune caltech-advpt --keep 5
  robustclip prompts explain caltech-advpt --labels cat,dog,fish --words 3
  robustclip prompts explain caltech-101-capt --all
"""


def main(argv: Sequence[str] | None = None) -> int:
    """List, show, explain, copy, activate, roll back, verify and prune prompt sets.

    Returns 0, or 1 when `verify` found something; raises RobustClipError for what the user can cure.
    """
    arguments = _parser().parse_args(argv)
    return arguments.run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="robustclip prompts",
        description="Look into a store of prompt sets and move its pointers; a running service follows "
        "within a second.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--store",
        metavar="PATH",
        help=f"the store's folder (default: ${_ENVIRONMENT}, else ./{DEFAULT_STORE})",
    )
    shared.add_argument(
        "--backbone",
        default=DEFAULT_BACKBONE,
        metavar="ARCH",
        help="the CLIP the question is asked for (default: %(default)s)",
    )
    shared.add_argument(
        "--pretrained", metavar="TAG|FILE", help="its weights, for architectures of open_clip"
    )
    shared.add_argument("--json", action="store_true", help="print one JSON object")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, help: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name, help=help, description=f"{help[0].upper()}{help[1:]}.", parents=[shared]
        )
        added.set_defaults(run=run)
        return added

    command("list", _list, "all prompt sets with their versions, newest first")
    command("show", _show, "everything about one prompt set").add_argument(
        "ref", metavar="NAME[@VERSION]", help="the active version if none is named"
    )
    copy = command(
        "copy", _copy, "publish a version under another name, or in another store, with its report"
    )
    copy.add_argument("ref", metavar="NAME[@VERSION]", help="the active version if none is named")
    copy.add_argument("--name", help="of the copy (default: the same)")
    copy.add_argument(
        "--to",
        type=Path,
        metavar="PATH",
        help="the store that gets it, made if it is not there (default: the same)",
    )
    copy.add_argument(
        "--results",
        type=Path,
        metavar="FILE",
        help="add to its manifest what this JSON of `evaluate` or `suite` measured of exactly that version, "
        "without a defense and on all classes",
    )
    copy.add_argument("--activate", action="store_true", help="serve the copy from now on")
    command("activate", _activate, "serve this version from now on").add_argument(
        "ref", metavar="NAME@VERSION"
    )
    command("rollback", _rollback, "serve the version that was active before").add_argument(
        "name", metavar="NAME"
    )
    command("verify", _verify, "read everything and report what would be refused (exit status 1 if anything)")
    prune = command("prune", _prune, "remove old versions; the active one and the one before stay")
    prune.add_argument("name", metavar="NAME")
    prune.add_argument(
        "--keep", type=int, default=3, metavar="N", help="newest versions to keep (default: 3)"
    )
    explain = command(
        "explain",
        _explain,
        "what a prompt set learned: the words nearest to its vectors, their lengths, what became of labels",
    )
    explain.add_argument("ref", metavar="NAME[@VERSION]", help="the active version if none is named")
    explain.add_argument(
        "--labels", metavar="A,B", help="labels to look at (default: those it was trained on)"
    )
    explain.add_argument(
        "--words", type=int, default=5, metavar="N", help="nearest words to show (default: 5)"
    )
    explain.add_argument(
        "--all",
        action="store_true",
        help="a row for every vector and label, not for 20 alone; JSON has all of them anyway",
    )
    return parser


def _list(arguments: argparse.Namespace) -> int:
    store, clip = _store(arguments, reading=True), _clip(arguments)
    versions = [stored for name in store.names() for stored in store.versions(name, clip.fingerprint)]
    if arguments.json:
        _print_json(
            {
                "store": str(store.root),
                "backbone": clip.arch,
                "fingerprint": clip.fingerprint,
                "versions": [_facts(one) for one in versions],
            }
        )
        return 0
    rows = [
        (
            one.ref.name,
            one.ref.version,
            one.reason or one.state,
            f"{one.created_at:%Y-%m-%d}" if one.created_at else "",
            _measured(one),
        )
        for one in versions
    ]
    _print_table(
        ("prompt set", "version", "state", "created", "measured"),
        rows,
        f"{store.root} for {clip.arch} ({clip.fingerprint[:8]})",
    )
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from prompts_store.manifest import Ref
    from robustclip.errors import UnknownVersion

    store, clip = _store(arguments, reading=True), _clip(arguments)
    ref = Ref.parse(arguments.ref)
    versions = store.versions(ref.name, clip.fingerprint)
    wanted = [
        one for one in versions if (one.ref.version == ref.version if ref.pinned else one.state == "active")
    ]
    if not wanted:
        raise UnknownVersion(
            f"there is no {ref}.",
            field="NAME",
            help=f"Versions: {', '.join(one.ref.version for one in versions)}.",
        )
    facts = _facts(wanted[0])
    if arguments.json:
        _print_json(facts)
    else:
        manifest = facts.pop("manifest") or {}
        labels = manifest.pop("labels", [])
        facts |= manifest | (
            {"labels": f"{len(labels)}: {', '.join(labels[:8])}{', ...' if len(labels) > 8 else ''}"}
            if labels
            else {}
        )
        _print_table(
            ("", ""),
            [(key, _text(value)) for key, value in facts.items() if value not in (None, "", [], {})],
            str(wanted[0].ref),
        )
    return 0


def _copy(arguments: argparse.Namespace) -> int:
    from prompts_store.results import read_results
    from prompts_store.store import PromptStore

    if arguments.to is None and arguments.name is None and arguments.results is None:
        raise InvalidInput(
            "a copy of the same name in the same store would be the set itself.",
            field="--name",
            help="Give --name, --to or --results, or several.",
        )
    source, clip = _store(arguments, reading=True), _clip(arguments)
    target = source if arguments.to is None else PromptStore(arguments.to)
    original = source.load(arguments.ref, clip)
    results = () if arguments.results is None else read_results(arguments.results, original.ref)
    ref = target.copy(
        original.ref, clip, source, name=arguments.name, results=results, activate=arguments.activate
    )
    active = target.active(clip.fingerprint).get(ref.name) == ref
    added = len(target.load(ref, clip).manifest.results) - len(original.manifest.results)
    if arguments.json:
        _print_json({"ref": str(ref), "store": str(target.root), "active": active, "results_added": added})
    else:
        gained = "" if arguments.results is None else f" with {added} more results"
        print(f"published {ref} in {target.root}{gained}{', active' if active else ''}")
    return 0


def _activate(arguments: argparse.Namespace) -> int:
    store, clip = _store(arguments), _clip(arguments)
    ref = store.activate(arguments.ref, clip.fingerprint)
    return _report_pointer(arguments, store, clip, ref.name)


def _rollback(arguments: argparse.Namespace) -> int:
    store, clip = _store(arguments), _clip(arguments)
    store.rollback(arguments.name, clip.fingerprint)
    return _report_pointer(arguments, store, clip, arguments.name)


def _verify(arguments: argparse.Namespace) -> int:
    store, clip = _store(arguments, reading=True), _clip(arguments)
    findings = store.verify(clip)
    if arguments.json:
        _print_json({"store": str(store.root), "findings": [vars(finding) for finding in findings]})
    elif findings:
        _print_table(
            ("file", "reason", "message"),
            [(one.path, one.reason, one.message) for one in findings],
            str(store.root),
        )
    else:
        print(f"{store.root}: everything can be served")
    return _FINDINGS if findings else 0


def _prune(arguments: argparse.Namespace) -> int:
    removed = _store(arguments).prune(arguments.name, _clip(arguments).fingerprint, keep=arguments.keep)
    if arguments.json:
        _print_json({"removed": [str(ref) for ref in removed]})
    else:
        print(f"removed {', '.join(map(str, removed))}" if removed else "nothing to remove")
    return 0


def _explain(arguments: argparse.Namespace) -> int:
    from robustclip.models.explanation import explain

    store, clip = _store(arguments, reading=True), _clip(arguments)
    labels = (
        [label.strip() for label in arguments.labels.split(",")] if arguments.labels is not None else None
    )
    loaded = store.load(arguments.ref, clip)
    learned_on = loaded.manifest.labels
    found = explain(
        clip,
        loaded.prompts,
        name=str(loaded.ref),
        learned_on=learned_on,
        labels=labels,
        words=arguments.words,
    )
    if arguments.json:
        _print_json(found.model_dump(mode="json"))
    else:
        for heads, rows, title in found.tables(every=arguments.all):
            _print_table(heads, rows, title, folded=2)
        for sentence in found.summary():
            print(sentence)
    return 0


def _report_pointer(arguments: argparse.Namespace, store: "PromptStore", clip: "Clip", name: str) -> int:
    pointer = store.pointer(name, clip.fingerprint)
    active, previous = pointer or (None, None)
    if arguments.json:
        _print_json({"name": name, "active": active, "previous": previous})
    else:
        print(f"{name}@{active} is active" + (f", before it {previous}" if previous else ""))
    return 0


def _store(arguments: argparse.Namespace, *, reading: bool = False) -> "PromptStore":
    """The store that was asked for. Reading where none was made yet shows the sets that ship, and says so."""
    from prompts_store.store import SHIPPED, PromptStore

    chosen = arguments.store or os.environ.get(_ENVIRONMENT)
    root = Path(chosen or DEFAULT_STORE)
    if root.is_dir():
        return PromptStore(root)
    if chosen or not reading:
        raise InvalidInput(
            f"there is no store at {root}.",
            field="--store",
            help="`robustclip serve` and `robustclip train` make one.",
        )
    print(f"no store at {root} yet: these are the sets that ship", file=sys.stderr)
    return PromptStore(SHIPPED, read_only=True)


def _clip(arguments: argparse.Namespace) -> "Clip":
    from robustclip.models.clip import load_clip

    return load_clip(arguments.backbone, arguments.pretrained)


def _facts(stored: "StoredVersion") -> dict[str, Any]:
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


def _measured(stored: "StoredVersion") -> str:
    """Accuracies on test pictures; on others with their split."""
    results = stored.manifest.results if stored.manifest else ()
    return ", ".join(
        f"{one.data}{'' if one.split == 'test' else f' {one.split}'} "
        f"{one.threat}{'' if one.eps == '0' else f' {one.eps}'} {100 * one.accuracy:.1f} %"
        for one in results
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _print_table(
    heads: tuple[str, ...], rows: Sequence[tuple[str, ...]], title: str, *, folded: int = 1
) -> None:
    """`folded`: how many of the last columns go on in the next line where the terminal is narrow."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left", show_header=any(heads))
    for index, head in enumerate(heads):
        table.add_column(
            head, no_wrap=index < len(heads) - folded, overflow="fold"
        )  # names and versions are copied from here
    for row in rows:
        table.add_row(*map(escape, row))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
