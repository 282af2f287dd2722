"""`robustclip classify` and `robustclip probe`: one decision on this machine, without a server, through the same library calls as the service."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from robustclip.errors import InvalidInput
from robustclip.files import write_atomically
from service.deployed import ask_for_decision, ask_for_pictures, labels_of, load_deployed, parser_of, read_pixels

if TYPE_CHECKING:  # these import torch, and --help must not wait for it
    from robustclip.report import ProbeReport

_BROKEN, _INCONCLUSIVE = 1, 2
_CLASSIFY = """examples:
  robustclip classify photo.jpg --labels cat,dog,bird
  robustclip classify *.jpg --labels cat,dog,bird --prompt-set handcrafted-ensemble --json
"""
_PROBE = """exit status: 0 not broken within the budget, 1 broken, 2 inconclusive or bad input

examples:
  robustclip probe photo.jpg --labels cat,dog,bird --eps 1/255
  robustclip probe photo.jpg --labels cat,dog,bird --defense jpeg:75,bit_depth:4 --out adversarial.png
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
    parser.add_argument("--true-label", metavar="LABEL", help="what the picture shows (default: the clean decision, which is then to be changed)")
    parser.add_argument("--eps", default="4/255", metavar="RADIUS", help="how far any value may move (default: 4/255)")
    parser.add_argument("--norm", choices=("linf", "l2"), default="linf", help="how the change is measured (default: linf)")
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="PGD steps a start (default: 20)")
    parser.add_argument("--restarts", type=int, default=1, metavar="N", help="random starts beside the picture itself (default: 1)")
    parser.add_argument("--score", choices=("margin", "cross_entropy"), default="margin", help="what the attack raises (default: margin)")
    parser.add_argument("--out", type=Path, metavar="PNG", help="write the adversarial picture, as the classifier sees it")
    arguments = parser.parse_args(argv)
    report = _probe(arguments)
    if arguments.out is not None:
        _write_witness(arguments.out, report)
    if arguments.json:
        print(report.model_dump_json(by_alias=True))
    else:
        _print_report(report)
    return {"broken": _BROKEN, "inconclusive": _INCONCLUSIVE}.get(report.verdict.value, 0)


def _probe(arguments: argparse.Namespace) -> "ProbeReport":
    import torch
    from pydantic import ValidationError

    from robustclip import probe as probing
    from robustclip.classifier import TorchImageEncoder, text_weights
    from robustclip.errors import invalid_input
    from robustclip.probe_options import ProbeOptions
    from robustclip.victim import Victim

    ball = {"kind": arguments.norm, "radius": arguments.eps}
    attack = {"kind": "pgd", "ball": ball, "steps": arguments.steps, "restarts": arguments.restarts, "stop": "never"}
    asked = {"attacks": [attack], "score": arguments.score, "true_label": arguments.true_label, "seed": arguments.seed, "include": ["adversarial"]}
    try:
        options = ProbeOptions.model_validate(asked)
    except ValidationError as error:
        raise invalid_input(error, asked) from error
    labels, deployed = labels_of(arguments), load_deployed(arguments)
    prompts = deployed.prompt_set.prompts
    with torch.no_grad():
        weights = text_weights(deployed.clip, prompts, labels)
    encoder = TorchImageEncoder(deployed.clip)
    victim = Victim(deployed.clip, prompts, str(deployed.prompt_set.ref), labels, weights, deployed.defense, encoder)
    return probing.probe(victim, read_pixels(arguments.pictures, deployed.clip), options)


def _write_witness(path: Path, report: "ProbeReport") -> None:
    import base64

    worst = min((record for record in report.attacks), key=lambda record: (not record.success_8bit, record.linf))
    if worst.adversarial_png is not None:
        try:
            write_atomically(path, base64.b64decode(worst.adversarial_png))
        except OSError as error:
            raise InvalidInput(f"{path} can't be written: {error.strerror}.", field="--out") from error


def _print_report(report: "ProbeReport") -> None:
    from rich.console import Console
    from rich.table import Table

    clean = report.input.clean
    print(f"{report.verdict.value}: {report.verdict.sentence}")
    print(f"clean: {clean.label} {clean.probability:.1%}, prompt set {report.victim.prompt_set}, {report.charged} charged passes, seed {report.seed}")
    table = Table("attack", "knows the defense", "succeeds", "as 8-bit PNG", "label", "score", "largest change", title="attacks")
    for record in report.attacks:
        knows = "yes" if record.knowledge == "adaptive" else "no"
        hits = ["yes" if hit else "no" for hit in (record.success, record.success_8bit)]
        table.add_row(record.kind, knows, *hits, record.label, f"{record.probability:.1%}", f"{record.linf_levels:g}/255")
    (Console() if sys.stdout.isatty() else Console(width=120)).print(table)
    for flag in report.diagnostics:
        if flag.fired:
            print(f"{flag.severity} flag {flag.id} {flag.name}: {flag.sentence} is {flag.number:.3g}")
