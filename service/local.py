"""`robustclip classify` and `robustclip probe`: one decision on this machine, without a server, through the same library calls as the service."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from robustclip.errors import InvalidInput
from robustclip.files import write_atomically

if TYPE_CHECKING:  # these import torch, and --help must not wait for it
    from prompts_store.manifest import PromptSet
    from robustclip.clip import Clip
    from robustclip.defenses import AnyDefense
    from robustclip.report import ProbeReport
    from robustclip.types import Pixels

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
    parser = _parser("classify", classify.__doc__, _CLASSIFY, pictures="+")
    parser.add_argument("--top-k", type=int, default=3, metavar="N", help="labels to show, best first (default: 3)")
    arguments = parser.parse_args(argv)
    if arguments.top_k < 1:
        raise InvalidInput(f"expected 1 or more, found {arguments.top_k}.", field="--top-k")
    import torch

    from robustclip.classifier import Defended, TorchImageEncoder, zero_shot
    from robustclip.defenses import bind_chain
    from robustclip.seeds import draw_seeds

    deployed = _deployed(arguments)
    encoder = TorchImageEncoder(deployed.clip)
    classifier = Defended(
        zero_shot(deployed.clip, deployed.prompt_set.prompts, deployed.labels, encoder=encoder), bind_chain(deployed.defense, encoder)
    )
    for path in arguments.pictures:
        with torch.inference_mode():
            scores = classifier(_pixels(path, deployed.clip)[None], draw_seeds(arguments.seed, 1))[0].softmax(dim=0)
        best = scores.topk(min(arguments.top_k, len(deployed.labels)))
        predictions = [(deployed.labels[index], score) for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
        if arguments.json:
            found = [{"label": label, "score": score} for label, score in predictions]
            print(json.dumps({"image": str(path), "prompt_set": str(deployed.prompt_set.ref), "predictions": found}))
        else:
            print(f"{path}  " + "  ".join(f"{label} {score:.1%}" for label, score in predictions) + f"  ({deployed.prompt_set.ref})")
    return 0


def probe(argv: Sequence[str] | None = None) -> int:
    """Attack one decision and say what came of it, without a server."""
    parser = _parser("probe", probe.__doc__, _PROBE, pictures=None)
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


class _Deployed(NamedTuple):
    clip: "Clip"
    prompt_set: "PromptSet"
    labels: tuple[str, ...]
    defense: "tuple[AnyDefense, ...]"


def _parser(name: str, summary: str | None, examples: str, *, pictures: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"robustclip {name}", description=summary, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pictures", type=Path, nargs=pictures, metavar="PICTURE", help="a JPEG, PNG or WebP file; - is standard input")
    parser.add_argument("--labels", required=True, metavar="A,B,C", help="what to choose from, two or more")
    parser.add_argument("--prompt-set", default="handcrafted", metavar="NAME[@VERSION]", help="default: handcrafted")
    parser.add_argument("--defense", default="none", metavar="CHAIN", help="such as jpeg:75,bit_depth:4,resize_pad (default: none)")
    parser.add_argument("--backbone", default="mini", metavar="ARCH", help="an embedded CLIP or an open_clip architecture (default: mini)")
    parser.add_argument("--pretrained", metavar="TAG|FILE", help="its weights, for architectures of open_clip")
    parser.add_argument("--store", type=Path, metavar="PATH", help="a store of prompt sets (default: those that are shipped)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="decides all randomness (default: 0)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _deployed(arguments: argparse.Namespace) -> _Deployed:
    from prompts_store.store import SHIPPED, PromptStore
    from robustclip.classifier import check_labels
    from robustclip.clip import load_clip
    from robustclip.defenses import parse_defenses

    labels = tuple(label.strip() for label in arguments.labels.split(","))
    check_labels(labels)
    defense = parse_defenses(arguments.defense, field="--defense")
    clip = load_clip(arguments.backbone, arguments.pretrained)
    store = PromptStore(arguments.store or SHIPPED, read_only=True)
    return _Deployed(clip, store.load(arguments.prompt_set, clip), labels, defense)


def _pixels(path: Path, clip: "Clip") -> "Pixels":
    from robustclip.images import load_pixels

    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path} can't be read: {error.strerror}.", field="PICTURE") from error
    return load_pixels(data, clip.image_size)


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
    deployed = _deployed(arguments)
    prompts = deployed.prompt_set.prompts
    with torch.no_grad():
        weights = text_weights(deployed.clip, prompts, deployed.labels)
    encoder = TorchImageEncoder(deployed.clip)
    victim = Victim(deployed.clip, prompts, str(deployed.prompt_set.ref), deployed.labels, weights, deployed.defense, encoder)
    return probing.probe(victim, _pixels(arguments.pictures, deployed.clip), options)


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
