"""`robustclip classify` and `robustclip probe`: one decision on this machine, without a server, through the same library calls as the service."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from robustclip.errors import InvalidInput
from service.deployed import Deployed, ask_for_decision, ask_for_pictures, labels_of, load_deployed, parser_of, read_pixels
from service.outputs import EXIT_STATUS, add_output_flags, command_line, exit_status, outputs_of, write_outputs
from service.probe_flags import add_attack_flags, in_words_of_flags, options_of, radii_of

if TYPE_CHECKING:  # these import torch, and --help must not wait for it
    from prompts_store.manifest import PromptSet
    from robustclip.clip import Clip
    from robustclip.report import AttackRecord, ProbeReport
    from robustclip.types import Pixels
    from robustclip.victim import Victim

_CLASSIFY = """examples:
  robustclip classify photo.jpg --labels cat,dog,bird
  robustclip classify *.jpg --labels cat,dog,bird --prompt-set handcrafted-ensemble --json
"""
_PROBE = f"""{EXIT_STATUS}
examples:
  robustclip probe photo.jpg --labels cat,dog,bird --eps 1/255
  robustclip probe photo.jpg --labels cat,dog,bird --preset standard --minimal
  robustclip probe photo.jpg --labels cat,dog,bird --defense jpeg:75,bit_depth:4 --out adversarial.png
  robustclip probe photo.jpg --labels cat,dog,bird --fail-below 1/255 --html report.html --sarif report.sarif
"""


def classify(argv: Sequence[str] | None = None) -> int:
    """Classify pictures among labels, without a server."""
    parser = parser_of("classify", classify.__doc__, _CLASSIFY)
    ask_for_pictures(parser, count="+")
    ask_for_decision(parser)
    parser.add_argument("--top-k", type=int, default=3, metavar="N", help="labels to show, best first (default: 3)")
    arguments = parser.parse_args(argv)
    if arguments.top_k < 1:
        raise InvalidInput(f"expected 1 or more, found {arguments.top_k}.", field="--top-k")
    import torch

    from robustclip.classifier import Defended, TorchImageEncoder, zero_shot
    from robustclip.defenses import bind_chain
    from robustclip.seeds import draw_seeds
    from robustclip.smoothing import count_votes, draw, elect, smoothing_of, vote_seeds

    labels, deployed = labels_of(arguments), load_deployed(arguments)
    encoder = TorchImageEncoder(deployed.clip)
    classifier = Defended(zero_shot(deployed.clip, deployed.prompt_set.prompts, labels, encoder=encoder), bind_chain(deployed.defense, encoder))
    rule = smoothing_of(deployed.defense)
    seeds = vote_seeds(int(draw_seeds(arguments.seed, 1)), rule)
    for path in arguments.pictures:
        with torch.inference_mode():
            logits = draw(classifier, read_pixels(path, deployed.clip), seeds)
        ballot = None if rule is None else elect(count_votes(logits), labels, rule)
        scores = logits[0].softmax(dim=0) if rule is None else count_votes(logits) / rule.votes
        best = scores.topk(min(arguments.top_k, len(labels)))
        predictions = [(labels[index], score) for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
        if arguments.json:
            found = [{"label": label, "score": score} for label, score in predictions if ballot is None or not ballot.abstained]
            voted = {} if ballot is None else {"smoothing": ballot.model_dump()}
            print(json.dumps({"image": str(path), "prompt_set": str(deployed.prompt_set.ref), "predictions": found} | voted))
        elif ballot is not None and ballot.abstained:
            votes = ", ".join(f"{label} {count}" for label, count in ballot.counts.items())
            print(f"{path}  abstains: {votes} of {ballot.votes} votes prove no majority  ({deployed.prompt_set.ref})")
        else:
            print(f"{path}  " + "  ".join(f"{label} {score:.1%}" for label, score in predictions) + f"  ({deployed.prompt_set.ref})")
    return 0


def probe(argv: Sequence[str] | None = None) -> int:
    """Attack one decision and say what came of it, without a server."""
    parser = parser_of("probe", probe.__doc__, _PROBE)
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
        if left_out := radii_of(arguments)[1]:
            print(f"not tried, since it can't change the exit status: {', '.join(left_out)} (a report by --html, --sarif, --json or --out has it)")
    write_outputs(outputs, report, pixels, picture=arguments.pictures, command=command_line("probe", argv))
    return exit_status(report, outputs)


def _probe(arguments: argparse.Namespace) -> "tuple[ProbeReport, Pixels]":
    from robustclip.attacks.events import Meter
    from robustclip.probe import events
    from service.progress import followed, interruptible

    options, labels, deployed = options_of(arguments), labels_of(arguments), load_deployed(arguments)
    pixels = read_pixels(arguments.pictures, deployed.clip)
    victim, *sources = [_victim(deployed._replace(prompt_set=each), labels) for each in (deployed.prompt_set, *_others(arguments, deployed.clip))]
    deadline = None if arguments.deadline is None else time.monotonic() + arguments.deadline
    with in_words_of_flags(), interruptible() as interrupted:
        told = events(victim, pixels, options, sources=sources, meter=Meter(deadline=deadline, cancelled=interrupted))
        return followed(told, lines=arguments.progress), pixels


def _others(arguments: argparse.Namespace, clip: "Clip") -> "list[PromptSet]":
    """The prompt sets to transfer from."""
    from prompts_store.store import SHIPPED, PromptStore

    store = PromptStore(arguments.store or SHIPPED, read_only=True)
    names = [] if arguments.transfer_from is None else arguments.transfer_from.split(",")
    return [store.load(name.strip(), clip) for name in names]


def _victim(deployed: Deployed, labels: tuple[str, ...]) -> "Victim":
    import torch

    from robustclip.classifier import TorchImageEncoder, text_weights
    from robustclip.victim import Victim

    prompts = deployed.prompt_set.prompts
    with torch.no_grad():
        weights = text_weights(deployed.clip, prompts, labels)
    return Victim(deployed.clip, prompts, str(deployed.prompt_set.ref), labels, weights, deployed.defense, TorchImageEncoder(deployed.clip))


def _print_report(report: "ProbeReport") -> None:
    from rich.console import Console
    from rich.table import Table

    from robustclip.wording import bracket_words, certificate_words, flag_sentence

    clean = report.input.clean
    print(f"{report.verdict.value}: {report.verdict.sentence}")
    print(f"clean: {clean.label} {clean.probability:.1%}, prompt set {report.victim.prompt_set}, {report.charged} charged passes, seed {report.seed}")
    table = Table("attack", "knows the defense", "succeeds", "as 8-bit PNG", "label", "score", "largest change", title="attacks")
    for record in report.attacks:
        knows = {"adaptive": "yes", "black_box": "its answers"}.get(record.knowledge, "no")
        hits = ["yes" if hit else "no" for hit in (record.success, record.success_8bit)]
        table.add_row(_tried(record), knows, *hits, record.label, f"{record.probability:.1%}", f"{record.linf_levels:g}/255")
    (Console() if sys.stdout.isatty() else Console(width=120)).print(table)
    if report.minimal_radius is not None:
        print(f"smallest radius: {bracket_words(report.minimal_radius)}")
    if report.certificate is not None:
        print(f"certificate: {certificate_words(report.certificate)}")
    for flag in report.diagnostics:
        if flag.fired:
            print(f"{flag.severity} flag {flag.id} {flag.name}: {flag_sentence(flag)}")


def _tried(record: "AttackRecord") -> str:
    """An attack with what it knows, where the next column does not say it; of a cascade the attack that broke the decision."""
    broke = next((f" ({stage.name})" for stage in record.stages if stage.broken), "")
    return record.kind + broke + ("" if record.knowledge in ("adaptive", "static", "black_box") else f", {record.knowledge}")
