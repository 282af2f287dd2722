"""`robustclip evaluate`: how often prompt sets are right, clean and attacked, on the same pictures, with the command that reproduces each number."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from robustclip.errors import InvalidInput, invalid_input
from training.config import DEFAULT_RUNS, check_device, default_store
from training.evaluation import NO_DEFENSE, Question, Row, answer, compare
from training.levels import LEVELS
from training.memory import keep_freed_memory
from training.progress import bar

EPILOG = """Several values of --backbone, --prompt-set, --data, --threat, --eps (with commas, or the option repeated) and --defense (repeated)
multiply. Prompt sets under the same condition are compared picture by picture; a difference whose interval contains 0 is no difference.

threats:
  clean  nobody attacks
  T0     the image tower without prompts is attacked by its embeddings alone: PGD-40, knows no text, labels, prompts or defense
  T2     everything is attacked: cross-entropy, PGD-100, through prompts and defense

examples:
  robustclip evaluate --prompt-set handcrafted --data pictures/caltech-101 --threat clean,T0,T2 --eps 2/255 --limit 256
  robustclip evaluate --prompt-set handcrafted,caltech-advpt --data pictures/caltech-101 --threat T2 --defense none --defense jpeg:75,bit_depth:4
"""
_WIDE = 160


def main(argv: Sequence[str] | None = None) -> int:
    """Measure prompt sets on labelled pictures, clean and attacked."""
    parser = argparse.ArgumentParser(
        prog="robustclip evaluate", description=main.__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_options(parser)
    arguments = parser.parse_args(argv)
    question = _read(arguments)
    keep_freed_memory()
    with bar(quiet=not sys.stderr.isatty()) as progress:
        rows = list(answer(question, progress=progress))
    paired = compare(rows)
    if arguments.json:
        print(json.dumps(_as_json(rows, paired, per_picture=arguments.per_picture)))
    else:
        _print_tables(rows, paired)
    return 0


def _add_options(parser: argparse.ArgumentParser) -> None:
    def several(option: str, default: str | None, text: str) -> None:
        shown = "" if default is None else f" (default: {default})"
        parser.add_argument(option, action="append", required=default is None, metavar="VALUE", help=text + shown)

    def one(option: str, default: Any, text: str) -> None:
        parser.add_argument(option, default=default, metavar="VALUE", help=f"{text} (default: {'none' if default is None else default})")

    several("--backbone", "mini", "an embedded CLIP, an open_clip architecture, or hf-hub:owner/repository")
    one("--pretrained", None, "open_clip tag or weights file of an architecture that is not embedded")
    several("--prompt-set", "handcrafted", 'NAME, NAME@VERSION, or a template such as "a photo of a {}." (on its own: repeat the option)')
    several("--data", None, "folder of Parquet files with classes.txt, or of class folders of pictures")
    one("--split", "test", "a split of the data; train:validation is the tenth of train that training holds out; all: class folders without splits")
    one("--classes", None, "file of class names, one a line, `name` or `name = other words`: measure on their pictures only")
    one("--among", "all", "with --classes, the labels to choose from: all of the data set's, or only these")
    several("--threat", "clean", f"of {', '.join(LEVELS)}")
    several("--eps", "1/255", "radius of the attack (Linf, pixel units)")
    parser.add_argument("--defense", action="append", metavar="CHAIN", help=f"one chain, such as jpeg:75,bit_depth:4 (default: {NO_DEFENSE})")
    one("--limit", 0, "at most so many pictures, classes balanced, drawn by the seed; 0 takes all")
    one("--seed", 0, "decides the pictures under a limit, and all randomness of attacks and defenses")
    one("--batch", 64, "pictures a batch")
    one("--store", default_store(), "where prompt sets are looked up, before those that are shipped")
    one("--runs", DEFAULT_RUNS, "where the pictures of T0 are kept; safe to delete")
    one("--device", "cpu", "torch device, such as cuda")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--per-picture", action="store_true", help="in the JSON: which pictures, and which of them were right")


def _read(arguments: argparse.Namespace) -> Question:
    values = {
        "backbones": _words(arguments.backbone or ["mini"]),
        "pretrained": arguments.pretrained,
        "prompt_sets": [word for value in arguments.prompt_set or ["handcrafted"] for word in ([value] if "{" in value else _words([value]))],
        "data": [word for value in arguments.data for word in ([value] if Path(value).exists() else _words([value]))],
        "split": arguments.split,
        "classes": arguments.classes,
        "among": arguments.among,
        "threats": _words(arguments.threat or ["clean"]),
        "eps": _words(arguments.eps or ["1/255"]),
        "defenses": arguments.defense or [NO_DEFENSE],
        **{name: getattr(arguments, name) for name in ("limit", "seed", "batch", "store", "runs")},
        "device": check_device(arguments.device),
    }
    options = {"backbones": "backbone", "prompt_sets": "prompt-set", "threats": "threat", "defenses": "defense"}
    try:
        question = Question.model_validate(values)
    except ValidationError as error:
        complaint = invalid_input(error, values)
        name = (complaint.field or "").split("/")[0]
        raise InvalidInput(complaint.message, field=f"--{options.get(name, name)}", help="robustclip evaluate --help lists all options.") from error
    if question.pretrained and len(question.backbones) > 1:
        raise InvalidInput("weights are for one backbone.", field="--pretrained", help="Name one backbone, or use embedded ones.")
    return question


def _words(values: Sequence[str]) -> list[str]:
    """Distinct values of an option that takes commas and may be repeated, in their order."""
    return list(dict.fromkeys(word.strip() for value in values for word in value.split(",") if word.strip()))


def _as_json(rows: Sequence[Row], paired: list[dict[str, Any]], *, per_picture: bool) -> dict[str, Any]:
    def results(row: Row) -> dict[str, Any]:
        return {**row.facts, "pictures": row.pictures, "correct": row.correct.tolist()} if per_picture else row.facts

    return {"results": [results(row) for row in rows], **({"paired": paired} if paired else {})}


def _print_tables(rows: Sequence[Row], paired: list[dict[str, Any]]) -> None:
    console = Console() if sys.stdout.isatty() else Console(width=_WIDE)
    table = Table("backbone", "data", "prompt set", "defense", "threat", "eps", "accuracy", "95 % interval", "8 bit", "n", "seconds")
    for facts in (row.facts for row in rows):
        interval = f"{facts['low']:.1%} - {facts['high']:.1%}"
        named = [facts[name] for name in ("backbone", "data", "prompt_set", "defense", "threat", "eps")]
        table.add_row(*named, f"{facts['accuracy']:.1%}", interval, f"{facts['accuracy_8bit']:.1%}", str(facts["n"]), f"{facts['seconds']:.1f}")
    console.print(table)
    if paired:
        table = Table("backbone", "data", "defense", "threat", "eps", "a", "b", "a - b, points", "95 % interval", "says")
        for facts in paired:
            # Few disagreements flatter the bootstrap (4 to 0 of 256 pictures has p = 0.125): both tests have to say so.
            decided = (facts["low"] > 0 or facts["high"] < 0) and facts["mcnemar"] < 0.05
            named = [facts[name] for name in ("backbone", "data", "defense", "threat", "eps", "a", "b")]
            points = f"{100 * facts['difference']:+.1f}"
            interval = f"{100 * facts['low']:+.1f} to {100 * facts['high']:+.1f}"
            table.add_row(*named, points, interval, f"{'a' if facts['low'] > 0 else 'b'} is better" if decided else "no difference")
        console.print(table)
