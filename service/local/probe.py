"""`robustclip probe`: attack one decision without a server, by the same library calls as the service."""

import argparse
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from service.local.deployed import (
    ask_for_decision,
    ask_for_pictures,
    labels_of,
    load_deployed,
    parser_of,
    read_pixels,
)
from service.local.outputs import (
    EXIT_STATUS,
    add_output_flags,
    command_line,
    exit_status,
    outputs_of,
    write_outputs,
)
from service.local.probe_flags import add_attack_flags, in_words_of_flags, options_of, radii_of_flags

if TYPE_CHECKING:  # these import torch, and --help must not wait for it
    from prompts_store.manifest import PromptSet
    from robustclip.models.clip import Clip
    from robustclip.reports.report import AttackRecord, ProbeReport
    from robustclip.types import Pixels

_EXAMPLES = f"""{EXIT_STATUS}
examples:
  robustclip probe photo.jpg --labels cat,dog,bird --eps 1/255
  robustclip probe photo.jpg --labels cat,dog,bird --preset standard --minimal
  robustclip probe photo.jpg --labels cat,dog,bird --defense jpeg:75,bit_depth:4 --out adversarial.png
  robustclip probe photo.jpg --labels cat,dog,bird --fail-below 1/255 --html report.html --sarif report.sarif
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Attack one decision and say what came of it, without a server."""
    parser = parser_of("probe", main.__doc__, _EXAMPLES)
    ask_for_pictures(parser, count=None)
    ask_for_decision(parser)
    add_attack_flags(parser)
    add_output_flags(parser)
    arguments = parser.parse_args(argv)
    outputs = outputs_of(arguments)
    report, pixels = _probe(arguments)
    if arguments.json:
        print(report.model_dump_json(by_alias=True))
    else:
        _print_report(report)
        if left_out := radii_of_flags(arguments)[1]:
            print(
                f"not tried, since it can't change the exit status: {', '.join(left_out)} (a report by "
                f"--html, --sarif, --json or --out has it)"
            )
    write_outputs(outputs, report, pixels, picture=arguments.pictures, command=command_line("probe", argv))
    return exit_status(report, outputs)


def _probe(arguments: argparse.Namespace) -> "tuple[ProbeReport, Pixels]":
    from robustclip.attacks.events import Meter
    from robustclip.probing.run import events
    from service.local.progress import followed, interruptible

    options, labels, deployed = options_of(arguments), labels_of(arguments.labels), load_deployed(arguments)
    pixels = read_pixels(arguments.pictures, deployed.clip)
    victim, *sources = [
        deployed._replace(prompt_set=each).over(labels)
        for each in (deployed.prompt_set, *_others(arguments, deployed.clip))
    ]
    deadline = None if arguments.deadline is None else time.monotonic() + arguments.deadline
    with in_words_of_flags(), interruptible() as interrupted:
        probe_events = events(
            victim, pixels, options, sources=sources, meter=Meter(deadline=deadline, cancelled=interrupted)
        )
        return followed(probe_events, lines=arguments.progress), pixels


def _others(arguments: argparse.Namespace, clip: "Clip") -> "list[PromptSet]":
    """The prompt sets to transfer from."""
    from prompts_store.store import SHIPPED, PromptStore

    store = PromptStore(arguments.store or SHIPPED, read_only=True)
    names = [] if arguments.transfer_from is None else arguments.transfer_from.split(",")
    return [store.load(name.strip(), clip) for name in names]


def _print_report(report: "ProbeReport") -> None:
    from rich.console import Console
    from rich.table import Table

    from robustclip.reports.wording import bracket_words, certificate_words, flag_sentence

    clean = report.input.clean
    print(f"{report.verdict.value}: {report.verdict.sentence}")
    print(
        f"clean: {clean.label} {clean.probability:.1%}{' (sigmoid)' * (report.victim.scoring == 'sigmoid')}, "
        f"prompt set {report.victim.prompt_set}, "
        f"{report.charged} charged passes, seed {report.seed}"
    )
    table = Table(
        "attack",
        "knows the defense",
        "succeeds",
        "as 8-bit PNG",
        "label",
        "score",
        "largest change",
        title="attacks",
    )
    for record in report.attacks:
        knows = {"adaptive": "yes", "black_box": "its answers"}.get(record.knowledge, "no")
        hits = ["yes" if hit else "no" for hit in (record.success, record.success_8bit)]
        table.add_row(
            _tried(record),
            knows,
            *hits,
            record.label,
            f"{record.probability:.1%}",
            f"{record.linf_levels:g}/255",
        )
    if report.attacks:
        (Console() if sys.stdout.isatty() else Console(width=120)).print(table)
    if report.minimal_radius is not None:
        print(f"smallest radius: {bracket_words(report.minimal_radius)}")
    if report.certificate is not None:
        print(f"certificate: {certificate_words(report.certificate)}")
    for flag in report.diagnostics:
        if flag.fired:
            print(f"{flag.severity} flag {flag.id} {flag.name}: {flag_sentence(flag)}")


def _tried(record: "AttackRecord") -> str:
    """An attack with what it knows, where the next column does not say it; of a cascade the attack that broke
    the decision.
    """
    broke = next((f" ({stage.name})" for stage in record.stages if stage.broken), "")
    return (
        record.kind
        + broke
        + ("" if record.knowledge in ("adaptive", "static", "black_box") else f", {record.knowledge}")
    )
