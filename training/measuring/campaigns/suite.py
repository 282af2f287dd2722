"""`robustclip suite`: fill a declared table, cell by cell, and write what `make results` makes a page of."""

import argparse
import json
import shlex
import sys
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

from robustclip.errors import InvalidInput
from robustclip.files import write_atomically
from training.commands import (
    DEFAULT_RUNS,
    Option,
    command_parser,
    default_store,
    flag,
    one,
    print_answer,
    several,
    shown,
    words,
    working,
)
from training.data.presets import facts, preset_sources
from training.measuring.campaigns.campaign import Round, perform
from training.measuring.campaigns.declaration import Table, read_table, rounds_of
from training.measuring.campaigns.forecast import forecast
from training.measuring.campaigns.ledger import Opened, read_record
from training.measuring.evaluation.checks import summary
from training.measuring.evaluation.illusions import illusions
from training.measuring.evaluation.question import Question
from training.measuring.evaluation.rows import Row
from training.measuring.pages.results import FOLDER
from training.measuring.pages.wording import absent
from training.measuring.schema.files import Gap, Method, TableFile, Training

EPILOG = """Everything that is done is kept: trainings and cells below --runs, prompt sets in --store, attacks
that are made once for an image tower
(T0, T1, static) too. Where these are gone, on another machine say, the JSON beside the table does for every
prompt set that it has whole. Stop it
at any time; the same command goes on, and --so-far writes what there is. Start it several times, once a core
or a GPU, and they share the work.
Only what --only, --method, --defense and --seed name is worked on, but the JSON always holds all that is done
of the table. What can't be trained is
a gap with its reason, and so is a defense whose network is not there.

examples:
  robustclip suite main --data pictures --dry-run
  robustclip suite main --data pictures --seed 0 --only caltech-101 && make results
  robustclip suite defenses-mini --data pictures --defense none,jpeg,median
  robustclip suite tables/own.toml --data pictures --so-far
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Fill a declared table of methods, data sets and attacks."""
    options = command_parser("suite", main.__doc__, _options(), epilog=EPILOG).parse_args(argv)
    path: Path = options.table if options.table.suffix == ".toml" else FOLDER / f"{options.table}.toml"
    table = read_table(path)
    found_at = preset_sources(table.declared.preset, options.data, only=table.declared.data)
    names = [name for name in facts().presets[table.declared.preset].data if name in table.declared.data]
    sources = dict(zip(names, found_at, strict=True))
    alone, hidden = "a table is filled by one process.", options.json and not sys.stderr.isatty()
    with working(options.device, quiet=hidden, alone=alone) as (processes, progress):
        opened = Opened(processes)
        rounds = rounds_of(
            table, sources, store=options.store, runs=options.runs, device=str(processes.device)
        )
        record = read_record(path.with_suffix(".json"))
        wanted = [] if options.so_far else _wanted(table, rounds, options)
        if not options.so_far:
            print(
                forecast(wanted, opened, record).sentence(),
                file=sys.stderr if options.json and not options.dry_run else sys.stdout,
                flush=True,
            )
            if options.dry_run:
                return 0
        found = list(perform(wanted, opened, progress=progress, record=record))
        if wanted != rounds:
            found = list(perform(rounds, opened, progress=progress, only_kept=True, record=record))
    places = ["--data", str(options.data), "--store", str(options.store)]
    command = shlex.join(["robustclip", "suite", str(options.table), *places])
    content = assembled(table, found, command=command)
    if not content.results:
        raise InvalidInput(
            "no cell of this table is measured yet.", field="--so-far", help="Leave it out to begin."
        )
    out: Path = options.out or path.with_suffix(".json")
    write_atomically(out, (json.dumps(content.as_json(), indent=1) + "\n").encode())
    answer = {
        "out": str(out),
        "cells": len(content.results),
        "missing": [gap.as_json() for gap in content.missing],
        "checks_fired": len(content.checks),
    }
    print_answer(answer, as_json=options.json, show=partial(_print, content, out))
    return 0


def _print(content: TableFile, out: Path) -> None:
    fired, gaps = len(content.checks), len(content.missing)
    print(f"{len(content.results)} cells in {out}; {fired} masking checks fired; {gaps} gaps")
    for sentence in absent(content.missing):
        print(f"  {sentence}")


def assembled(table: Table, found: Sequence[Row | Training | Gap], *, command: str) -> TableFile:
    """What the page is made of: rows, what follows from them, trainings and gaps; of masking checks those
    that fired, and how many there were.
    """
    rows = [row for row in found if isinstance(row, Row)]
    declared = table.declared
    whole = summary(rows, against=declared.against)
    return TableFile(
        title=declared.title,
        says=declared.says.strip(),
        command=command,
        max_passes=declared.max_passes,
        methods=_methods(table),
        defenses=declared.defenses,
        results=whole.results,
        paired=whole.paired,
        illusions=tuple(illusions(rows)),
        over_seeds=whole.over_seeds,
        over_data=whole.over_data,
        paired_over_data=whole.paired_over_data,
        left_out_over_data=whole.left_out_over_data,
        checks=tuple(whole.fired),
        checks_made=len(whole.checks),
        headlines=whole.headlines,
        trainings=tuple(part for part in found if isinstance(part, Training)),
        missing=tuple(part for part in found if isinstance(part, Gap)),
    )


def _methods(table: Table) -> dict[str, Method]:
    """What the methods that learn are here: in which settings an objective is not what its name alone means,
    and which record chose some of them.
    """
    described: dict[str, Method] = {}
    for label, learned in table.objectives.items():
        if learned is None:
            continue
        objective, selection = learned
        own, plain = objective.model_dump(), type(objective)().model_dump()
        named = table.declared.methods[label].selection
        described[label] = Method(
            kind=objective.kind,
            settings={name: shown(value) for name, value in own.items() if value != plain[name]},
            chosen=() if selection is None else tuple(name for name in selection.over if name != "kind"),
            selection=str(named) if named else None,
        )
    return described


def _wanted(table: Table, rounds: Sequence[Round], options: argparse.Namespace) -> list[Round]:
    """The part of the table that is to be worked on now."""
    methods = _among(options.method, list(table.declared.methods), "--method")
    chains = {
        table.declared.defenses[name]
        for name in _among(options.defense, list(table.declared.defenses), "--defense")
    }
    data, seeds = (
        _among(options.only, list(table.declared.data), "--only"),
        _among(options.seed, list(map(str, table.declared.seeds)), "--seed"),
    )
    return [
        Round(
            turn.data,
            turn.seed,
            tuple(entry for entry in turn.entries if entry.label in methods),
            tuple(
                (_behind(question, chains), tuple(label for label in labels if label in methods))
                for question, labels in turn.questions
            ),
        )
        for turn in rounds
        if turn.data in data and str(turn.seed) in seeds
    ]


def _behind(question: Question, chains: Collection[str]) -> Question:
    return question.model_copy(
        update={"defenses": tuple(chain for chain in question.defenses if chain in chains)}
    )


def _among(given: list[str] | None, known: list[str], option: str) -> list[str]:
    asked = words(given or ())
    for word in asked:
        if word not in known:
            raise InvalidInput(
                f"the table has no {word!r}.", field=option, help=f"It has {', '.join(known)}."
            )
    return asked or known


def _options() -> dict[str, Option]:
    return {
        "table": {
            "type": Path,
            "metavar": "TABLE",
            "help": "a declaration in TOML, or the name of one in training/results",
        },
        "--data": {
            "type": Path,
            "required": True,
            "metavar": "DIR",
            "help": "what holds the data sets of the table's preset, a folder each",
        },
        "--only": several("all", "some of its data sets now", metavar="DATA"),
        "--method": several("all", "some of its methods now", metavar="NAME"),
        "--defense": several("all", "some of its defenses now, by the table's names", metavar="NAME"),
        "--seed": several("all", "some of its seeds now", metavar="N"),
        "--store": one(default_store(), "where sets are published", type=Path, metavar="DIR"),
        "--runs": one(DEFAULT_RUNS, "what is kept between sittings", type=Path, metavar="DIR"),
        "--device": {"help": "torch device, such as cuda (default: a GPU where there is one)"},
        "--out": {"type": Path, "metavar": "FILE", "help": "where the JSON goes (default: beside the table)"},
        "--dry-run": flag("only say what would be trained and measured, and what that takes at most"),
        "--so-far": flag("compute nothing: write what is done already"),
        "--json": flag("print one JSON object"),
    }
