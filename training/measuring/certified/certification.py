"""Smoothed decisions about labelled pictures: how many are right, how many are certified and how far, and
whether an attack refutes any certificate.

It computes; `command.py` reads options and prints, `attack.py` attacks. Noisy embeddings are kept in
RUNS/noise, attacks and votes without them in RUNS/certified, a file each: a killed run goes on, and other
prompt sets are certified from the same noise.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError
from torch import Tensor

from robustclip.certificates.certify import (
    Certificate,
    NoisyFeatures,
    certify,
    certify_features,
    count_features,
    noisy_features,
)
from robustclip.certificates.noise_cache import cached_features, noise_path, portion_for, question_of
from robustclip.certificates.vote import VOTES_A_PASS, elect
from robustclip.errors import DataRefused
from robustclip.files import write_atomically
from robustclip.probing.attacker import Attacker
from robustclip.probing.served import Aim
from robustclip.probing.victim import Victim
from robustclip.scores.wrappers import guarded
from robustclip.seeds import draw_seeds
from robustclip.types import Cost, Progress, Score, price
from training.measuring.certified.attack import Assault, Attempt, assault_bill, attack_certificate
from training.measuring.certified.subjects import SmoothedSubject
from training.measuring.evaluation.cells import cell_path

Kept = TypeVar("Kept", bound=BaseModel)


class Settled(NamedTuple):
    """All that is known of one picture. `answer`: of a vote by the same `n`, None where it abstains; `same`:
    whether votes with and without kept embeddings are the same.
    """

    name: str
    truth: str
    answer: str | None
    certificate: Certificate
    attempts: tuple[Attempt, ...] = ()
    same: bool | None = None


class Billed(NamedTuple):
    """Passes that a subject takes at most, since only what is certified is attacked. `kept`: for so many
    pictures the noise is kept already.
    """

    subject: SmoothedSubject
    kept: int
    certificates: Cost
    attacks: Cost
    direct: Cost

    @property
    def charged(self) -> int:
        return self.certificates.plus(self.attacks).plus(self.direct).charged


def settle(subject: SmoothedSubject, *, progress: Progress) -> list[Settled]:
    """Certify every picture, attack what is certified, and count some votes without the kept embeddings."""
    question, total = subject.question, len(subject.indices)
    settled: list[Settled] = []
    for done, index in enumerate(subject.indices):
        progress(done, total, f"certify {subject.words}")
        settled.append(_certified(subject, index))
    progress(total, total, f"certify {subject.words}")
    proven = (
        [row for row, each in enumerate(settled) if not each.certificate.abstained]
        if question.assault
        else []
    )
    for done, row in enumerate(proven):
        progress(done, len(proven), f"attack {subject.words}")
        settled[row] = settled[row]._replace(
            attempts=tuple(_attacked(subject, subject.indices[row], settled[row].certificate))
        )
        progress(done + 1, len(proven), f"attack {subject.words}")
    for row, index in enumerate(subject.indices[: question.direct]):
        settled[row] = settled[row]._replace(
            same=_directly(subject, index)
            == settled[row].certificate.model_copy(update={"exploratory": None})
        )
    return settled


def billed(subjects: Sequence[SmoothedSubject]) -> list[Billed]:
    """The bill of what is not there yet; noise that several subjects share is billed to the first."""
    made: set[Path] = set()
    bills: list[Billed] = []
    for subject in subjects:
        question, options = subject.question, subject.options
        one, kept = price(subject.vote, options.n0 + options.n), 0
        certificates, attacks, direct = Cost(), Cost(), Cost()
        for row, index in enumerate(subject.indices):
            pixels = subject.pixels(index)
            path = noise_path(question.runs / "noise", subject.key(pixels))
            kept += path.exists()
            if not path.exists() and path not in made:
                certificates = certificates.plus(one)
            made.add(path)
            if row < question.direct and not _direct_cell(subject, pixels).exists():
                direct = direct.plus(one)
            if question.assault is not None and not all(
                _attack_cell(subject, pixels, *parts).exists() for parts in _parts(question.assault)
            ):
                attacks = attacks.plus(assault_bill(question.assault, subject.vote, options.n))
        bills.append(Billed(subject, kept, certificates, attacks, direct))
    return bills


def _certified(subject: SmoothedSubject, index: int) -> Settled:
    """From kept embeddings, which are made if they are not there."""
    pixels, options, root = subject.pixels(index), subject.options, subject.question.runs / "noise"
    key = subject.key(pixels)
    portion = portion_for(root, key, question_of(subject.asked, options.alpha))
    kept = cached_features(
        root,
        key,
        lambda number: noisy_features(subject.vote, pixels, options, portion=number),
        portion=portion.number,
    )
    noisy = NoisyFeatures(*(features.to(subject.clip.device) for features in kept))
    certificate = certify_features(
        subject.classifier, noisy, pixels.numel(), options, exploratory=portion.exploratory
    )
    ballot = elect(
        count_features(subject.classifier, noisy.counting), subject.classifier.labels, subject.rule
    )
    answer = None if ballot.abstained else next(iter(ballot.counts))
    return Settled(
        subject.data.names[index], subject.data.labels[int(subject.data.targets[index])], answer, certificate
    )


def _attacked(subject: SmoothedSubject, index: int, certificate: Certificate) -> Iterator[Attempt]:
    assault = subject.question.assault
    assert assault is not None
    pixels = subject.pixels(index)
    score = _score(subject, pixels, certificate)
    for factor, ball in assault.balls(certificate):
        attack = partial(attack_certificate, score, subject.vote, pixels, certificate, ball)
        path = _attack_cell(subject, pixels, factor, ball.kind)
        yield _once(
            path,
            Attempt,
            partial(
                attack, factor=factor, assault=assault, seed=subject.options.seed, votes=subject.options.n
            ),
        )


def _score(subject: SmoothedSubject, pixels: Tensor, certificate: Certificate) -> Score:
    """Margins of single draws against the certified label; gradients pass the rule's chain in the way that
    each link declares.
    """
    classifier = subject.classifier
    victim = Victim(
        subject.clip,
        subject.found.prompts.to(subject.clip.device),
        subject.found.name,
        classifier.labels,
        classifier.weights,
        (subject.rule, *subject.chain),
        classifier.encoder,
    )
    aim = Aim(truth=classifier.labels.index(certificate.label))
    attacker = Attacker(
        victim,
        aim,
        "margin",
        eot=1,
        guard=partial(guarded, chunk_rows=VOTES_A_PASS),
        share=lambda classifier: classifier,
    )
    return attacker.score("adaptive", pixels[None], draw_seeds(subject.options.seed, 1))


def _directly(subject: SmoothedSubject, index: int) -> Certificate:
    pixels = subject.pixels(index)
    return _once(
        _direct_cell(subject, pixels), Certificate, lambda: certify(subject.vote, pixels, subject.options)
    )


def _parts(assault: Assault) -> list[tuple[float, str]]:
    return list(itertools.product(assault.factors, ("l2", "linf")))


def _attack_cell(subject: SmoothedSubject, pixels: Tensor, factor: float, norm: str) -> Path:
    assault = subject.question.assault
    assert assault is not None
    return _cell(subject, pixels, {**assault.model_dump(exclude={"factors"}), "factor": factor, "norm": norm})


def _direct_cell(subject: SmoothedSubject, pixels: Tensor) -> Path:
    return _cell(subject, pixels, {"direct": True})


def _cell(subject: SmoothedSubject, pixels: Tensor, part: dict[str, object]) -> Path:
    """Where an answer about a certificate is kept: named by all that the certificate and the answer depend
    on.
    """
    decision = {
        "prompts": subject.found.prompts.digest(),
        "labels": list(subject.classifier.labels),
        "alpha": subject.options.alpha,
    }
    key = {
        "noise": subject.key(pixels).model_dump(mode="json"),
        **decision,
        "device": subject.question.device,
        **part,
    }
    return cell_path(subject.question.runs / "certified", key)


def _once(path: Path, model: type[Kept], make: Callable[[], Kept]) -> Kept:
    """The answer in that file, which is made first where it is missing. DataRefused for a file that holds
    something else.
    """
    try:
        return model.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        made = make()
    except (OSError, ValidationError) as error:
        raise DataRefused(
            "no answer about a certificate.", field=str(path), help="Remove this file: it will be made again."
        ) from error
    write_atomically(path, made.model_dump_json().encode() + b"\n")
    return made
