"""`robustclip prompts`: look into a store and move its pointers, which a running service follows."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from prompts_store.printing import facts, measured, print_answer, print_json, print_table, text
from robustclip import DEFAULT_BACKBONE
from robustclip.errors import InvalidInput

if TYPE_CHECKING:  # these import torch, and --help must not wait for it
    from prompts_store.store import PromptStore
    from robustclip.models.clip import Clip

DEFAULT_STORE = "var/prompts"
_ENVIRONMENT = "ROBUSTCLIP_STORE__PATH"
_FINDINGS = 1

_Option: TypeAlias = dict[str, Any]  # what `add_argument` takes beside the name

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

    Returns 0, or 1 if `verify` found something; raises RobustClipError for a user's error.
    """
    arguments = _parser().parse_args(argv)
    return arguments.run(arguments) or 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="robustclip prompts",
        description="Look into a store of prompt sets and move its pointers; a running service follows "
        "within a second.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (run, about, options) in _commands().items():
        command = commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
        command.set_defaults(run=run)
        for option, how in (_SHARED | options).items():
            command.add_argument(option, **how)
    return parser


def _value(metavar: str, text: str | None = None, **how: Any) -> _Option:
    return {"metavar": metavar, "help": text, **how}


def _flag(text: str) -> _Option:
    return {"action": "store_true", "help": text}


_SHARED = {
    "--store": _value("PATH", f"the store's folder (default: ${_ENVIRONMENT}, else ./{DEFAULT_STORE})"),
    "--backbone": _value(
        "ARCH", "the CLIP the question is asked for (default: %(default)s)", default=DEFAULT_BACKBONE
    ),
    "--pretrained": _value("TAG|FILE", "its weights, for architectures of open_clip"),
    "--json": _flag("print one JSON object"),
}
_REF = {"ref": _value("NAME[@VERSION]", "the active version if none is named")}
_COPY = {
    "--name": {"help": "of the copy (default: the same)"},
    "--to": _value("PATH", "the store that gets it, made if it is not there (default: the same)", type=Path),
    "--results": _value(
        "FILE",
        "add to its manifest what this JSON of `evaluate` or `suite` measured of exactly that version, "
        "without a defense and on all classes",
        type=Path,
    ),
    "--activate": _flag("serve the copy from now on"),
}
_PRUNE = {"--keep": _value("N", "newest versions to keep (default: 3)", type=int, default=3)}
_EXPLAIN = {
    "--labels": _value("A,B", "labels to look at (default: those it was trained on)"),
    "--words": _value("N", "nearest words to show (default: 5)", type=int, default=5),
    "--all": _flag("a row for every vector and label, not for 20 alone; JSON has all of them anyway"),
}


def _commands() -> dict[str, tuple[Callable[[argparse.Namespace], int | None], str, dict[str, _Option]]]:
    """By name: what runs, what it is for, its options."""
    name = {"name": _value("NAME")}
    learned = "the words nearest to its vectors, their lengths, what became of labels"
    copied = "publish a version under another name, or in another store, with its report"
    verified = "read everything and report what would be refused (exit status 1 if anything)"
    pruned = "remove old versions; the active one and the one before stay"
    return {
        "list": (_list, "all prompt sets with their versions, newest first", {}),
        "show": (_show, "everything about one prompt set", _REF),
        "copy": (_copy, copied, _COPY | _REF),
        "activate": (_activate, "serve this version from now on", {"ref": _value("NAME@VERSION")}),
        "rollback": (_rollback, "serve the version that was active before", name),
        "verify": (_verify, verified, {}),
        "prune": (_prune, pruned, name | _PRUNE),
        "explain": (_explain, f"what a prompt set learned: {learned}", _REF | _EXPLAIN),
    }


def _list(arguments: argparse.Namespace) -> None:
    store, clip = _store(arguments, reading=True), _clip(arguments)
    versions = [stored for name in store.names() for stored in store.versions(name, clip.fingerprint)]
    if arguments.json:
        about = {"store": str(store.root), "backbone": clip.arch, "fingerprint": clip.fingerprint}
        print_json(about | {"versions": [facts(stored) for stored in versions]})
        return
    heads = ("prompt set", "version", "state", "created", "measured")
    rows = [
        (
            stored.ref.name,
            stored.ref.version,
            stored.reason or stored.state,
            f"{stored.created_at:%Y-%m-%d}" if stored.created_at else "",
            measured(stored),
        )
        for stored in versions
    ]
    print_table(heads, rows, f"{store.root} for {clip.arch} ({clip.fingerprint[:8]})")


def _show(arguments: argparse.Namespace) -> None:
    from prompts_store.manifest import Ref
    from robustclip.errors import UnknownVersion

    store, clip = _store(arguments, reading=True), _clip(arguments)
    ref = Ref.parse(arguments.ref)
    versions = store.versions(ref.name, clip.fingerprint)
    for stored in versions:
        if stored.ref.version == ref.version if ref.pinned else stored.state == "active":
            break
    else:
        raise UnknownVersion(
            f"there is no {ref}.",
            field="NAME",
            help=f"Versions: {', '.join(stored.ref.version for stored in versions)}.",
        )
    shown = facts(stored)
    if arguments.json:
        print_json(shown)
        return
    shown |= shown.pop("manifest") or {}
    if labels := shown.pop("labels", []):
        shown["labels"] = f"{len(labels)}: {', '.join(labels[:8])}{', ...' if len(labels) > 8 else ''}"
    rows = [(key, text(value)) for key, value in shown.items() if value not in (None, "", [], {})]
    print_table(("", ""), rows, str(stored.ref))


def _copy(arguments: argparse.Namespace) -> None:
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
    gained = "" if arguments.results is None else f" with {added} more results"
    print_answer(
        {"ref": str(ref), "store": str(target.root), "active": active, "results_added": added},
        f"published {ref} in {target.root}{gained}{', active' if active else ''}",
        as_json=arguments.json,
    )


def _activate(arguments: argparse.Namespace) -> None:
    store, clip = _store(arguments), _clip(arguments)
    ref = store.activate(arguments.ref, clip.fingerprint)
    _report_pointer(arguments, store, clip, ref.name)


def _rollback(arguments: argparse.Namespace) -> None:
    store, clip = _store(arguments), _clip(arguments)
    store.rollback(arguments.name, clip.fingerprint)
    _report_pointer(arguments, store, clip, arguments.name)


def _verify(arguments: argparse.Namespace) -> int:
    store, clip = _store(arguments, reading=True), _clip(arguments)
    findings = store.verify(clip)
    if findings and not arguments.json:
        rows = [(finding.path, finding.reason, finding.message) for finding in findings]
        print_table(("file", "reason", "message"), rows, str(store.root))
    else:
        data = {"store": str(store.root), "findings": [vars(finding) for finding in findings]}
        print_answer(data, f"{store.root}: everything can be served", as_json=arguments.json)
    return _FINDINGS if findings else 0


def _prune(arguments: argparse.Namespace) -> None:
    removed = _store(arguments).prune(arguments.name, _clip(arguments).fingerprint, keep=arguments.keep)
    refs = [str(ref) for ref in removed]
    print_answer(
        {"removed": refs},
        f"removed {', '.join(refs)}" if refs else "nothing to remove",
        as_json=arguments.json,
    )


def _explain(arguments: argparse.Namespace) -> None:
    from robustclip.models.explanation import explain
    from robustclip.models.labels import split_labels

    store, clip = _store(arguments, reading=True), _clip(arguments)
    labels = None if arguments.labels is None else split_labels(arguments.labels, field="--labels")
    prompt_set = store.load(arguments.ref, clip)
    explanation = explain(
        clip,
        prompt_set.prompts,
        name=str(prompt_set.ref),
        learned_on=prompt_set.manifest.labels,
        labels=labels,
        words=arguments.words,
    )
    if arguments.json:
        print_json(explanation.model_dump(mode="json"))
        return
    for heads, rows, title in explanation.tables(every=arguments.all):
        print_table(heads, rows, title, folded=2)
    for sentence in explanation.summary():
        print(sentence)


def _report_pointer(arguments: argparse.Namespace, store: "PromptStore", clip: "Clip", name: str) -> None:
    active, previous = store.pointer(name, clip.fingerprint) or (None, None)
    print_answer(
        {"name": name, "active": active, "previous": previous},
        f"{name}@{active} is active" + (f", before it {previous}" if previous else ""),
        as_json=arguments.json,
    )


def _store(arguments: argparse.Namespace, *, reading: bool = False) -> "PromptStore":
    """The store to use. Reading before any store exists shows the sets that ship, and says so."""
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
