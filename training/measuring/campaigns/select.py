"""`robustclip select`: choose settings of a method on pictures held out of training, and write down how."""

import argparse
import itertools
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from robustclip.errors import InvalidInput
from robustclip.files import write_atomically
from robustclip.threat import radius_text
from training.commands import (
    Option,
    add_field,
    add_options,
    command_parser,
    console,
    flag,
    option_of,
    print_answer,
    read_fields,
    words,
    working,
)
from training.learning.objectives import OBJECTIVES
from training.learning.tuning.selection import Selection, level_of, score
from training.measuring.campaigns.campaign import perform
from training.measuring.campaigns.candidates import Choosing, candidates, judged_on, record, rounds_of
from training.measuring.campaigns.forecast import forecast
from training.measuring.campaigns.ledger import Opened

_SEVERAL = {"data": "--data", "seeds": "--seed"}
EPILOG = """Each candidate is trained on each data set with each seed, as `robustclip train` does it, and
judged on `train:validation`, the tenth that no run trains on: untouched, and under T2 with few steps or under
the threat level that --by names. No test picture is opened. A killed selection goes on where it was. The
record is for `robustclip train --selection FILE` and for tables of `robustclip suite`; both refuse one that
was made on other pictures.

examples:
  robustclip select --objective capt --over alpha_rule=reliability,loss_ratio,cosine \\
      --data pictures/caltech-101,pictures/cifar-10 --dry-run
  robustclip select --objective capt --candidate alpha_rule=reliability \\
      --candidate alpha_rule=constant,alpha=0.25 --by harmonic --data pictures/dtd
  robustclip select --over kind=capt,apd --with eps=2/255 --eps 2/255 --data pictures/caltech-101 \\
      --out chosen.json
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Choose settings of a method on held-out training pictures."""
    given = sys.argv[1:] if argv is None else list(argv)
    options = vars(_parser().parse_args(given))
    out, device, as_json, dry_run = (options.pop(name) for name in ("out", "device", "json", "dry_run"))
    tried = candidates(*_tried(options))
    choosing = _choosing(options)
    alone, hidden = "a selection runs in one process.", as_json and not sys.stderr.isatty()
    with working(device, quiet=hidden, alone=alone) as (processes, progress):
        opened = Opened(processes)
        judged_on(choosing, opened)
        rounds = rounds_of(choosing, tried, device=str(processes.device))
        print(
            forecast(rounds, opened).sentence(),
            file=sys.stderr if as_json and not dry_run else sys.stdout,
            flush=True,
        )
        if dry_run:
            return 0
        found = list(perform(rounds, opened, progress=progress))
    made = record(choosing, tried, opened, found, command=shlex.join(["robustclip", "select", *given]))
    path: Path = out or choosing.runs / "select" / f"{made.carried().digest}.json"
    write_atomically(path, (made.model_dump_json(indent=1) + "\n").encode())
    answer = {"record": str(path), "chosen": made.chosen, "objective": made.objective}
    print_answer(answer, as_json=as_json, show=partial(_print, made, path, choosing))
    return 0


def _tried(options: dict[str, Any]) -> tuple[dict[str, str], list[dict[str, str]]]:
    """What all candidates share, and what each has of its own."""
    kind, fixed, over, listed = (options.pop(name) for name in ("objective", "fixed", "over", "candidate"))
    shared = ({"kind": kind} if kind else {}) | dict(_pair(text, "--with") for text in fixed)
    varied = [
        [(name, value.strip()) for value in values.split(",")]
        for name, values in (_pair(text, "--over") for text in over)
    ]
    each = [dict(_pair(part, "--candidate") for part in text.split(",")) for text in listed]
    products = [dict(choice) for choice in itertools.product(*varied)] if varied else []
    if not kind and not any("kind" in own for own in (shared, *each, *products)):
        raise InvalidInput(
            f"expected one of {', '.join(sorted(OBJECTIVES))}.",
            field="--objective",
            help="Or vary it: --over kind=capt,apd.",
        )
    return shared, [*each, *products]


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise InvalidInput(f"expected NAME=VALUE, found {text!r}.", field=option)
    return name.strip(), value.strip()


def _choosing(options: dict[str, Any]) -> Choosing:
    values = {name: value for name, value in options.items() if value is not None}
    for name in _SEVERAL:
        if name in values:
            values[name] = words(values[name])
    return read_fields(Choosing, values, command="select", named=_option)


def _option(field: str) -> str:
    name = field.split("/")[0]
    return _SEVERAL.get(name, option_of(name))


_CANDIDATES: dict[str, Option] = {
    "--objective": {"metavar": "KIND", "help": f"one of {', '.join(sorted(OBJECTIVES))}"},
    "--with": {
        "dest": "fixed",
        "action": "append",
        "default": [],
        "metavar": "NAME=VALUE",
        "help": "a parameter of every candidate",
    },
    "--over": {
        "action": "append",
        "default": [],
        "metavar": "NAME=A,B",
        "help": "try each of these; several options multiply",
    },
    "--candidate": {
        "action": "append",
        "default": [],
        "metavar": "NAME=A,NAME=B",
        "help": "try these together; first are those named so",
    },
}
_WORK: dict[str, Option] = {
    "--device": {"help": "torch device, such as cuda (default: a GPU where there is one)"},
    "--out": {
        "type": Path,
        "metavar": "FILE",
        "help": "where the record goes (default: RUNS/select/DIGEST.json)",
    },
    "--dry-run": flag("only say what would be trained and measured, and what that takes at most"),
    "--json": flag("print one JSON object"),
}


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("select", main.__doc__, {}, epilog=EPILOG)
    about = "Parameters have the names that `robustclip train --help` lists as --objective.NAME."
    add_options(parser.add_argument_group("candidates", about), _CANDIDATES)
    for name, field in Choosing.model_fields.items():
        if field.annotation is bool:
            add_options(parser, {option_of(name): flag(f"{field.description} (default: no)")})
        elif name in _SEVERAL:
            how = {"dest": name, "action": "append", "required": field.is_required(), "metavar": "VALUE"}
            add_options(parser, {_option(name): {**how, "help": field.description}})
        else:
            add_field(parser, name, field)
    add_options(parser, _WORK)
    return parser


def _print(made: Selection, path: Path, choosing: Choosing) -> None:
    """Every candidate with its score, the winner marked, and how to train it as it was judged."""
    data = ", ".join(dict.fromkeys(judged.data for judged in made.judged_on))
    table = Table(
        "",
        "candidate",
        made.by,
        f"clean, {level_of(made.by)} {radius_text(choosing.eps)} on {data}",
        "ahead of the first",
    )
    for candidate in made.candidates:
        settings = ", ".join(f"{name} {value}" for name, value in candidate.settings.items())
        if candidate.why is not None:
            table.add_row("", settings, "", candidate.why, "")
            continue
        numbers = ", ".join(f"{100 * number.accuracy:.1f}" for number in candidate.numbers)
        ahead = candidate.ahead
        gain = (
            ""
            if ahead is None
            else f"{100 * ahead.value:+.1f} ({100 * ahead.low:+.1f} to {100 * ahead.high:+.1f})"
        )
        table.add_row(
            "*" if candidate.settings == made.chosen else "",
            settings,
            f"{100 * score(candidate.numbers, made.by):.1f}",
            numbers,
            gain,
        )
    console().print(table)
    print(f"chosen {made.chosen}; the record: {path}")
    given = {
        "--selection": path,
        "--backbone": choosing.backbone,
        "--shots": str(made.shots),
        "--pretrained": choosing.pretrained,
        "--classes": choosing.classes,
        "--max-passes": made.max_passes,
        "--precision": choosing.precision,
    }
    as_judged = [str(word) for pair in given.items() if pair[1] for word in pair]
    as_judged += ["--allow-fewer-shots"] if choosing.allow_fewer_shots else []
    print(f"  robustclip train {shlex.join(as_judged)} --data DIR --name NAME")
