"""`robustclip certified`: how often a smoothed rule is right and certified, how far, and whether an attack
refutes a certificate.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from robustclip import DEFAULT_BACKBONE
from robustclip.certificates.certify import Certificate, CertifyOptions
from robustclip.defenses.smoothing import Smoothing
from training.commands import (
    DEFAULT_RUNS,
    Option,
    bar,
    check_device,
    command_parser,
    console,
    default_store,
    flag,
    keep_freed_memory,
    one,
    option_of,
    print_answer,
    print_rows,
    read_fields,
    several,
    words,
    words_but,
)
from training.measuring.certified.certification import Billed, billed, settle
from training.measuring.certified.facts import certified_facts
from training.measuring.certified.subjects import Attempt, CertifiedQuestion, open_smoothed
from training.measuring.evaluation.plan import duration, seconds_per_pass
from training.measuring.evaluation.question import NO_DEFENSE
from training.measuring.pages.certified import counted, rule_words
from training.measuring.schema.files import Certified

_REFUTED = 1
_RADII = ("0.05", "0.1", "0.2", "0.25", "0.5", "1")
_SERVED_VOTES = Smoothing.model_fields["votes"].default
_EPILOG = f"""Certified is the decision of `robustclip classify --defense smoothing:SIGMA,...`. "Right" and
"no answer" are decided by --n votes, while `classify` takes {_SERVED_VOTES} unless its chain names another
number: fewer votes leave more pictures without an answer. Several values of --prompt-set and --sigma
multiply; prompt sets share alpha and the noise, which is kept below --runs. A killed run continues where it
stopped.

exit status: 0 nothing speaks against the certificates, 1 an attack refuted one or the votes without kept
embeddings differ, 2 bad input

examples:
  robustclip certified --data pictures/cifar-10 --limit 200 --sigma 0.1,0.25 --denoise --dry-run
  robustclip certified --data pictures/cifar-10 --limit 200 --sigma 0.1,0.25 --denoise --attack \\
      --direct 10 --json > found.json
  robustclip certified --data pictures/cifar-10 --limit 20 --sigma 0.1 \\
      --attack 0.99,16    # inside nothing may fall, far outside much should
"""
_OPTIONS = {
    "prompt_sets": "prompt-set",
    "radii": "radius",
    "rules": "sigma",
    "assault": "attack",
    "factors": "attack",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Certify smoothed decisions on labelled pictures, and attack the certificates."""
    arguments = command_parser("certified", main.__doc__, _options(), epilog=_EPILOG).parse_args(argv)
    question = read_certified(arguments)
    keep_freed_memory()
    subjects = open_smoothed(question)
    bills = billed(subjects)
    summary = _summary(bills)
    if arguments.dry_run:
        charged = sum(bill.charged for bill in bills)
        answer = {"plan": [_as_facts(bill) for bill in bills], "charged": charged, "summary": summary}
        print_answer(answer, as_json=arguments.json, show=partial(print, summary))
        return 0
    print(summary, file=sys.stderr if arguments.json else sys.stdout, flush=True)
    with bar() as progress:  # also into a log: this may take hours
        results = [
            certified_facts(subject, settle(subject, progress=progress), per_picture=arguments.per_picture)
            for subject in subjects
        ]
    answer = {"kind": "certified", "results": [row.as_json() for row in results]}
    print_answer(answer, as_json=arguments.json, show=partial(_print, results))
    return 0 if all(row.holds for row in results) else _REFUTED


def read_certified(arguments: argparse.Namespace) -> CertifiedQuestion:
    """The question that parsed options mean. Raises InvalidInput that names the option at fault."""
    sigmas = words(arguments.sigma or [str(CertifyOptions().sigma)])
    rule = {name: getattr(arguments, name) for name in ("n", "n0", "alpha", "seed", "denoise")}
    assault = {name: getattr(arguments, name) for name in ("steps", "draws", "restarts")}
    values: dict[str, Any] = {
        "prompt_sets": words_but(lambda value: "{" in value, arguments.prompt_set or ["handcrafted"]),
        "data": {"folder": arguments.data, "split": arguments.split},
        "rules": [{**rule, "sigma": sigma} for sigma in dict.fromkeys(sigmas)],
        "radii": words(arguments.radius or _RADII),
        "assault": None if arguments.attack is None else {**assault, "factors": words([arguments.attack])},
        **{
            name: getattr(arguments, name)
            for name in ("backbone", "pretrained", "defense", "direct", "limit", "store", "runs")
        },
        "device": check_device(arguments.device),
    }
    return read_fields(CertifiedQuestion, values, command="certified", named=_option)


def _option(field: str) -> str:
    name = [part for part in field.split("/") if not part.isdigit()][-1]
    return option_of(_OPTIONS.get(name, name))


def _options() -> dict[str, Option]:
    fields = CertifyOptions.model_fields
    return {
        "--backbone": one(
            DEFAULT_BACKBONE, "an embedded CLIP, an open_clip architecture, or hf-hub:owner/repository"
        ),
        "--pretrained": one(None, "open_clip tag or weights file of an architecture that is not embedded"),
        "--prompt-set": several(
            "handcrafted",
            'NAME, NAME@VERSION, or a template such as "a photo of a {}." (on its own: repeat the option)',
        ),
        "--data": {
            "required": True,
            "type": Path,
            "metavar": "DIR",
            "help": "labelled pictures, as `robustclip evaluate` takes them",
        },
        "--split": one(
            "test", "a split of the data; train:validation is the tenth of train that training holds out"
        ),
        "--limit": one(
            0,
            "at most so many pictures, classes balanced, those that `robustclip evaluate` would take; 0 "
            "takes all",
        ),
        "--seed": one(fields["seed"].default, "all randomness of votes and attacks"),
        "--sigma": several(str(fields["sigma"].default), "size of the noise in pixel units of [0, 1]"),
        "--denoise": {
            "nargs": "?",
            "const": "own",
            "metavar": "WEIGHTS",
            "help": "take the noise away before each vote, by the denoiser that ships, or the .json of "
            "another that `robustclip train-purifiers` wrote",
        },
        "--n": one(fields["n"].default, "votes that are counted, and those that judge an attack"),
        "--n0": one(fields["n0"].default, "votes before those, which choose the label"),
        "--alpha": one(
            fields["alpha"].default,
            "the chance that one picture's statement is wrong; prompt sets share it",
        ),
        "--defense": one(NO_DEFENSE, "chain behind the noise, such as bit_depth:4"),
        "--radius": several(",".join(_RADII), "L2 radii at which certified accuracy is given"),
        "--attack": {
            "nargs": "?",
            "const": "0.99",
            "metavar": "FACTORS",
            "help": "attack every certificate at these parts of its L2 radius and of the Linf radius that it "
            "implies (0.99 if none is named)",
        },
        "--steps": one(10, "of the attack, from the picture and from each random start"),
        "--draws": one(16, "of noise behind each of the attack's gradients"),
        "--restarts": one(1, "random starts of the attack"),
        "--direct": one(0, "for so many pictures count the votes again without kept embeddings, and compare"),
        "--store": one(default_store(), "where prompt sets are looked up, before those that are shipped"),
        "--runs": one(DEFAULT_RUNS, "where noisy embeddings and finished attacks are kept; safe to delete"),
        "--device": one("cpu", "torch device, such as cuda"),
        "--dry-run": flag("only say what it would take: charged passes at most, and about how long"),
        "--json": flag("print one JSON object"),
        "--per-picture": flag("in the JSON: what is known of every picture"),
    }


def _summary(bills: Sequence[Billed]) -> str:
    """One sentence: what is left to do, and how long it takes at most."""
    certificates, attacks, direct = (
        sum(part.charged for part in parts)
        for parts in zip(*((bill.certificates, bill.attacks, bill.direct) for bill in bills), strict=True)
    )
    charged = sum(bill.charged for bill in bills)
    seconds = charged * seconds_per_pass(bills[0].subject.clip) if charged else 0.0
    statements, kept = sum(len(bill.subject.indices) for bill in bills), sum(bill.kept for bill in bills)
    return (
        f"{statements} certificates, {kept} of them from noise that is kept already; at most {charged:,} "
        f"charged passes (forward + 2 backward), "
        f"{duration(seconds)} at the present pace: certificates {certificates:,}, attacks {attacks:,} if "
        f"all are certified, direct votes {direct:,}"
    )


def _as_facts(bill: Billed) -> dict[str, object]:
    subject = bill.subject
    return {
        "prompt_set": subject.found.name,
        "sigma": subject.options.sigma,
        "n": len(subject.indices),
        "kept": bill.kept,
        "certificates": bill.certificates.charged,
        "attacks": bill.attacks.charged,
        "direct": bill.direct.charged,
        "charged": bill.charged,
    }


def _print(results: Sequence[Certified]) -> None:
    out = console()
    for row in results:
        out.print(f"{rule_words(row)}: {row.backbone}, {row.data} {row.split}, {row.n} pictures")
        print_rows(
            None, [{"": what, "per cent (95 % interval)": cell} for what, cell in counted(row).items()]
        )
        for wrong in row.refuted:
            certificate = Certificate.model_validate(wrong.certificate)
            attempt = Attempt.model_validate(wrong.attempt)
            out.print(
                f"refuted: {wrong.picture}, certified {certificate.label!r} within "
                f"{certificate.radius_l2:.4g} (L2), has "
                f"{attempt.hits} of {attempt.votes} votes at distance {attempt.distance:.4g}."
            )
        if row.exploratory:
            out.print(
                "Exploratory: some of this noise had answered another question before, so alpha does not "
                "hold."
            )
