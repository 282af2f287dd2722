"""`robustclip certify`: certificates of a smoothed decision, without a server, from noise that is stored."""

import argparse
import json
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from robustclip.errors import InvalidInput, RobustClipError, invalid_input
from service.local.deployed import (
    ask_for_decision,
    ask_for_pictures,
    labels_of,
    load_deployed,
    parser_of,
    read_pixels,
)

if TYPE_CHECKING:  # these import torch, and --help must not wait for it
    from torch import Tensor

    from robustclip.certificates.certify import Certificate, CertifyOptions, NoisyFeatures
    from robustclip.defenses import AnyDefense
    from robustclip.models.classifier import ZeroShotClassifier
    from robustclip.models.clip import Clip

_ABSTAINED = 1
_EXAMPLES = """Certified is the vote that `robustclip classify --defense smoothing:SIGMA,...` and /classify
take, never the plain decision.
--defense names what stands behind the noise.

exit status: 0 every statement has a radius, 1 the votes of some prove nothing, 2 bad input

examples:
  robustclip certify photo.jpg --labels cat,dog,bird
  robustclip certify photo.jpg --labels cat,dog,bird --also cat,dog --sigma 0.12 --defense bit_depth:4 \\
      --n 10000
  robustclip certify photo.jpg --labels cat,dog,bird --denoise
  robustclip certify photo.jpg --labels cat,dog            # from the noise that was kept, so exploratory
  robustclip certify photo.jpg --labels cat,dog --confirm  # from noise that nobody has seen
"""


class _Smoothed(NamedTuple):
    """The classifier for each list of labels, the defenses behind the noise, and the options."""

    clip: "Clip"
    lists: "list[tuple[str, ...]]"
    classifiers: "tuple[ZeroShotClassifier, ...]"
    denoiser: "tuple[AnyDefense, ...]"
    options: "CertifyOptions"


def main(argv: Sequence[str] | None = None) -> int:
    """Certify the smoothed decision about pictures: a radius within which no change turns it."""
    parser = parser_of("certify", main.__doc__, _EXAMPLES)
    ask_for_pictures(parser, count="+")
    ask_for_decision(parser)
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="A,B,C",
        help="another list of labels, from the same noise; all share alpha",
    )
    parser.add_argument(
        "--sigma", type=float, metavar="S", help="size of the noise in pixel units of [0, 1] (default: 0.25)"
    )
    parser.add_argument(
        "--denoise",
        nargs="?",
        const="own",
        metavar="WEIGHTS",
        help="take the noise away before each vote, by the denoiser that ships, or the .json of another "
        "that `robustclip train-purifiers` wrote",
    )
    parser.add_argument(
        "--n",
        type=int,
        default=1000,
        metavar="N",
        help="votes that are counted; 10000 and more give larger radii (default: 1000)",
    )
    parser.add_argument(
        "--n0",
        type=int,
        default=100,
        metavar="N",
        help="votes before those, which choose the label (default: 100)",
    )
    parser.add_argument(
        "--alpha",
        type=float,
        default=0.001,
        metavar="P",
        help="the chance that what is stated is wrong (default: 0.001)",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path("var/noise"),
        metavar="PATH",
        help="where noisy embeddings are kept (default: var/noise)",
    )
    parser.add_argument(
        "--no-cache",
        action="store_true",
        help="keep nothing; then nobody knows what the same noise was asked before",
    )
    parser.add_argument(
        "--confirm", action="store_true", help="use noise that has answered no other question"
    )
    arguments = parser.parse_args(argv)
    if arguments.no_cache and arguments.confirm:
        raise InvalidInput(
            "found beside --no-cache.",
            field="--confirm",
            help="Without a cache no noise is known to be fresh: give another --seed.",
        )
    smoothed, prompt_set = _smoothed(arguments)
    from robustclip.reports.wording import certificate_words

    abstained = False
    for path in arguments.pictures:
        pixels = read_pixels(path, smoothed.clip)
        certificates = (
            _without_cache(smoothed, pixels)
            if arguments.no_cache
            else _from_cache(smoothed, pixels, arguments)
        )
        abstained |= any(certificate.abstained for certificate in certificates)
        if arguments.json:
            found = [
                {"labels": labels, "scoring": classifier.scoring, **certificate.model_dump()}
                for labels, classifier, certificate in zip(
                    smoothed.lists, smoothed.classifiers, certificates, strict=True
                )
            ]
            noise = smoothed.options.model_dump(include={"sigma", "denoise"}, exclude_none=True)
            rule = [
                {"kind": "smoothing", **noise},
                *(spec.model_dump(mode="json") for spec in smoothed.denoiser),
            ]
            print(
                json.dumps(
                    {"image": str(path), "prompt_set": prompt_set, "defense": rule, "certificates": found}
                )
            )
        else:
            print(
                "\n".join(
                    f"{path}  {certificate_words(certificate)}  ({prompt_set})"
                    for certificate in certificates
                )
            )
    return _ABSTAINED if abstained else 0


def _smoothed(arguments: argparse.Namespace) -> tuple[_Smoothed, str]:
    """What to certify, and the prompt set's name. Raises RobustClipError that names the option at
    fault.
    """
    from pydantic import ValidationError

    from robustclip.certificates.certify import CertifyOptions
    from robustclip.certificates.vote import smoothing_of
    from robustclip.defenses import parse_defenses
    from robustclip.models.classifier import TorchImageEncoder, zero_shot

    chain = parse_defenses(arguments.defense, field="--defense")
    rule = smoothing_of(chain)
    if rule is not None and arguments.sigma is not None:
        raise InvalidInput(
            "found beside smoothing in --defense.", field="--sigma", help="Name the size of the noise once."
        )
    if rule is not None and arguments.denoise is not None:
        raise InvalidInput(
            "found beside smoothing in --defense.",
            field="--denoise",
            help='Write {"kind": "smoothing", "denoise": "own"} there.',
        )
    values = {name: getattr(arguments, name) for name in ("n", "n0", "alpha", "seed")}
    values["denoise"] = arguments.denoise if rule is None else rule.denoise
    sigma = arguments.sigma if rule is None else rule.sigma
    try:
        options = CertifyOptions.model_validate(values | ({} if sigma is None else {"sigma": sigma}))
    except ValidationError as error:
        complaint = invalid_input(error, values | {"sigma": sigma})
        complaint.field = f"--{complaint.field}"
        raise complaint from error
    lists = [labels_of(arguments.labels)]
    with _in_also():
        lists += [labels_of(text) for text in arguments.also]
    deployed = load_deployed(arguments)
    encoder = TorchImageEncoder(deployed.clip)

    def over(labels: tuple[str, ...]) -> "ZeroShotClassifier":
        return zero_shot(
            deployed.clip, deployed.prompt_set, labels, encoder=encoder, scoring=deployed.scoring
        )

    first, *others = lists
    with _in_also():
        further = [over(labels) for labels in others]
    classifiers = (over(first), *further)
    denoiser = chain if rule is None else chain[1:]
    return _Smoothed(deployed.clip, lists, classifiers, denoiser, options), str(deployed.prompt_set.ref)


@contextmanager
def _in_also() -> Generator[None]:
    """Complaints about further lists of labels name their option."""
    try:
        yield
    except RobustClipError as error:
        error.field = "--also"
        raise


def _from_cache(smoothed: _Smoothed, pixels: "Tensor", arguments: argparse.Namespace) -> "list[Certificate]":
    from robustclip.certificates.noise_cache import NoiseKey, cached_features, portion_for, question_of

    clip, _, classifiers, denoiser, options = smoothed
    key = NoiseKey.of(clip, classifiers[0], pixels, options, denoiser)
    portion = portion_for(
        arguments.cache, key, question_of(classifiers, options.alpha), confirm=arguments.confirm
    )
    noisy = cached_features(
        arguments.cache, key, lambda number: _made(smoothed, pixels, number), portion=portion.number
    )
    return _concluded(smoothed, noisy, pixels.numel(), portion.exploratory)


def _without_cache(smoothed: _Smoothed, pixels: "Tensor") -> "list[Certificate]":
    return _concluded(smoothed, _made(smoothed, pixels, 0), pixels.numel(), None)


def _made(smoothed: _Smoothed, pixels: "Tensor", portion: int) -> "NoisyFeatures":
    from robustclip.certificates.certify import noisy_classifier, noisy_features

    options = smoothed.options
    vote = noisy_classifier(
        smoothed.classifiers[0], options.sigma, smoothed.denoiser, denoise=options.denoise
    )
    with _bar(options.n0 + options.n) as advance:
        return noisy_features(vote, pixels, options, portion=portion, on_rows=advance)


def _concluded(
    smoothed: _Smoothed, noisy: "NoisyFeatures", values: int, exploratory: bool | None
) -> "list[Certificate]":
    from robustclip.certificates.certify import certify_features

    count = len(smoothed.classifiers)
    return [
        certify_features(
            classifier, noisy, values, smoothed.options, statements=count, exploratory=exploratory
        )
        for classifier in smoothed.classifiers
    ]


@contextmanager
def _bar(total: int) -> Generator[Callable[[int], None]]:
    """Advances by as many copies as were encoded, on a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bars:
        task = bars.add_task("noisy copies", total=total)
        yield lambda rows: bars.advance(task, rows)
