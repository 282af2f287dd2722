"""The attack options of `robustclip probe`: from flags to the library's options, and complaints back in the
words of the flags.
"""

import argparse
import json
import re
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from robustclip.errors import InvalidInput, RobustClipError, invalid_input

if TYPE_CHECKING:  # these import torch, and --help must not wait for it
    from robustclip.probing.options import ProbeOptions

_FLAGS = {
    "attacks": "--eps",
    "attacks/0/ball/radius": "--eps",
    "attacks/0/steps": "--steps",
    "attacks/0/restarts": "--restarts",
    "true_label": "--true-label",
    "target_label": "--target-label",
    "minimal": "--minimal",
    "certify/n": "--certify",
    "certify/sigma": "--sigma",
    "self_test": "--self-test",
    "seed": "--seed",
    "enough": "--fail-below",
}
_ANY_ATTACK = re.compile(r"^attacks/\d+/")  # they differ by their radius alone
_STEPS, _RESTARTS = 20, 1


def add_attack_flags(parser: argparse.ArgumentParser) -> None:
    """What is attacked how hard, and how long."""
    group = parser.add_argument_group("attack")
    group.add_argument(
        "--true-label",
        metavar="LABEL",
        help="what the picture shows (default: the clean decision, which then is to be changed)",
    )
    group.add_argument("--target-label", metavar="LABEL", help="the label to reach (default: any other)")
    group.add_argument(
        "--eps",
        default="4/255",
        metavar="RADIUS,...",
        help="how far any value may move; several make a curve (default: 4/255)",
    )
    group.add_argument(
        "--norm", choices=("linf", "l2"), default="linf", help="how the change is measured (default: linf)"
    )
    group.add_argument(
        "--preset",
        choices=("quick", "standard", "thorough"),
        help="the strong attack instead of PGD: some 230, 3,100 or 13,000 charged passes where nothing "
        "breaks",
    )
    group.add_argument(
        "--attack",
        metavar="KIND",
        help="another attack instead of PGD: its kind, or JSON with its parameters, such as "
        '{"kind": "apgd", "steps": 50}',
    )
    group.add_argument("--steps", type=int, metavar="N", help=f"PGD steps a start (default: {_STEPS})")
    group.add_argument(
        "--restarts",
        type=int,
        metavar="N",
        help=f"random starts of PGD beside the picture itself (default: {_RESTARTS})",
    )
    group.add_argument(
        "--score",
        choices=("margin", "cross_entropy"),
        default="margin",
        help="what PGD raises (default: margin)",
    )
    group.add_argument(
        "--oblivious",
        action="store_true",
        help="also move the image embedding alone, as one who knows neither labels nor defense",
    )
    group.add_argument(
        "--transfer-from", metavar="NAME,...", help="other prompt sets whose gradients are tried too"
    )
    group.add_argument(
        "--minimal",
        action="store_true",
        help="bracket the smallest radius that breaks the decision, up to 64/255",
    )
    group.add_argument(
        "--self-test",
        action="store_true",
        help="if nothing breaks, check that the attack solves problems with a known answer",
    )
    group.add_argument(
        "--certify",
        type=int,
        nargs="?",
        const=1000,
        metavar="N",
        help="certify the smoothed decision too, from N votes (default: 1000)",
    )
    group.add_argument(
        "--sigma",
        type=float,
        metavar="S",
        help="noise to certify with (default: that of smoothing in --defense, else 0.25)",
    )
    group.add_argument(
        "--deadline",
        type=float,
        metavar="SECONDS",
        help="then say what was found so far; Ctrl-C does so at once",
    )
    group.add_argument(
        "--progress",
        action="store_true",
        help="say what happens on standard error, a line each, also where that is no terminal",
    )


def options_of(arguments: argparse.Namespace) -> "ProbeOptions":
    """Raises InvalidInput that names the flag at fault."""
    from pydantic import ValidationError

    from robustclip.probing.options import ProbeOptions

    radii, _ = radii_of_flags(arguments)
    for flag in ("steps", "restarts", "attack"):
        if arguments.preset is not None and getattr(arguments, flag) is not None:
            raise InvalidInput(
                "found beside --preset.",
                field=f"--{flag}",
                help="A preset has its own steps: leave one of the two out.",
            )
        if arguments.attack is not None and flag != "attack" and getattr(arguments, flag) is not None:
            raise InvalidInput(
                "found beside --attack.",
                field=f"--{flag}",
                help='Write it into the attack: {"kind": "apgd", "steps": 50}.',
            )
    if arguments.sigma is not None and arguments.certify is None:
        raise InvalidInput("found without --certify.", field="--sigma", help="Noise is for certifying.")
    if arguments.deadline is not None and not arguments.deadline > 0:
        raise InvalidInput(f"expected more than 0 seconds, found {arguments.deadline}.", field="--deadline")
    steps, restarts = (
        default if given is None else given
        for given, default in ((arguments.steps, _STEPS), (arguments.restarts, _RESTARTS))
    )
    pgd: dict[str, Any] = {"kind": "pgd", "steps": steps, "restarts": restarts, "stop": "never"}
    attack = pgd if arguments.preset is None else {"kind": "ensemble", "preset": arguments.preset}
    if arguments.attack is not None:
        attack = _attack_of(arguments.attack)
    modes = [
        "static",
        "adaptive",
        *["oblivious"] * arguments.oblivious,
        *["transfer"] * (arguments.transfer_from is not None),
    ]
    asked = {
        "attacks": [attack | {"ball": {"kind": arguments.norm, "radius": radius}} for radius in radii],
        "score": arguments.score,
        "modes": modes,
        "minimal": arguments.minimal,
        "certify": None
        if arguments.certify is None
        else {"n": arguments.certify} | ({} if arguments.sigma is None else {"sigma": arguments.sigma}),
        "self_test": arguments.self_test,
        "enough": arguments.fail_below if wants_status_alone(arguments) else None,
        "true_label": arguments.true_label,
        "target_label": arguments.target_label,
        "seed": arguments.seed,
        "include": ["adversarial", *["curve", "heat"] * (arguments.html is not None)],
    }
    with in_words_of_flags():
        try:
            return ProbeOptions.model_validate(asked)
        except ValidationError as error:
            refusal = invalid_input(error, asked)
            if arguments.attack is not None and re.match(r"attacks/\d+(?!\d|/ball)", refusal.field or ""):
                refusal.field = "--attack"
            raise refusal from error


def _attack_of(text: str) -> dict[str, Any]:
    """The parameters that --attack gives: all but the ball, which --norm and --eps give."""
    if not text.lstrip().startswith("{"):
        return {"kind": text.strip()}
    try:
        attack: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise InvalidInput(
            f"no JSON: {error}.", field="--attack", help='Write it like {"kind": "apgd", "steps": 50}.'
        ) from error
    if "ball" in attack:
        raise InvalidInput("found a ball in it.", field="--attack", help="Give --norm and --eps instead.")
    return attack


def wants_status_alone(arguments: argparse.Namespace) -> bool:
    """Whether the question is --fail-below's alone: nobody asked for a report, which would tell more than the
    exit status.
    """
    reports = (arguments.json, arguments.html, arguments.sarif, arguments.out)
    return arguments.fail_below is not None and not any(reports)


def radii_of_flags(arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    """The radii to try, and those of --eps that are left out because they can't change the exit status.
    Raises InvalidInput for what is no radius.
    """
    from robustclip.threat import parse_radius

    asked, policy = [each.strip() for each in arguments.eps.split(",")], arguments.fail_below
    if not wants_status_alone(arguments):
        return list(dict.fromkeys([*asked, *[policy] * (policy is not None)])), []
    larger = [each for each in asked if parse_radius(each, "--eps") > parse_radius(policy, "--fail-below")]
    return list(dict.fromkeys([policy, *(each for each in asked if each not in larger)])), larger


@contextmanager
def in_words_of_flags() -> Generator[None]:
    """Complaints about options name the flag that set them."""
    try:
        yield
    except RobustClipError as error:
        error.field = (
            None
            if error.field is None
            else _FLAGS.get(_ANY_ATTACK.sub("attacks/0/", error.field), error.field)
        )
        raise
