"""Certificates of labelled pictures, and attacks on them; `command.py` reads options and prints.

Noisy embeddings are stored in RUNS/noise, attacks and direct votes in RUNS/certified, a file each: a killed
run continues, and other prompt sets are certified from the same noise.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic import BaseModel
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
from robustclip.deployed import deploy
from robustclip.probing.attacker import Attacker
from robustclip.probing.served import Aim
from robustclip.scores import guarded
from robustclip.seeds import draw_seeds
from robustclip.types import Cost, DeviceAccess, Progress, Score, price
from training import finished
from training.measuring.certified.subjects import (
    Assault,
    Attempt,
    SmoothedSubject,
    assault_bill,
    attack_certificate,
)
from training.measuring.evaluation.cells import cell_path

M = TypeVar("M", bound=BaseModel)


class Settled(NamedTuple):
    """The results for one picture.

    `answer`: of a vote of the same `n` draws, None where it abstains; `same`: whether a direct vote, without
    stored embeddings, gives the same certificate.
    """

    name: str
    truth: str
    answer: str | None
    certificate: Certificate
    attempts: tuple[Attempt, ...] = ()
    same: bool | None = None


class Billed(NamedTuple):
    """The most passes that a subject will take; of `kept` pictures the noise is stored already."""

    subject: SmoothedSubject
    kept: int
    certificates: Cost
    attacks: Cost
    direct: Cost

    @property
    def charged(self) -> int:
        return self.certificates.plus(self.attacks).plus(self.direct).charged


def settle(subject: SmoothedSubject, *, progress: Progress) -> list[Settled]:
    """Certify every picture, attack the certified ones, and take some votes without stored embeddings."""
    question, total = subject.question, len(subject.indices)
    settled: list[Settled] = []
    for done, index in enumerate(subject.indices):
        progress(done, total, f"certify {subject.words}")
        settled.append(_certified(subject, index))
    progress(total, total, f"certify {subject.words}")
    proven = [row for row, each in enumerate(settled) if not each.certificate.abstained]
    for done, row in enumerate(proven if question.assault else ()):
        progress(done, len(proven), f"attack {subject.words}")
        attacked = _attacked(subject, subject.indices[row], settled[row].certificate)
        settled[row] = settled[row]._replace(attempts=tuple(attacked))
        progress(done + 1, len(proven), f"attack {subject.words}")
    for row, index in enumerate(subject.indices[: question.direct]):
        pixels = subject.pixels(index)
        path = _cell(subject, pixels, {"direct": True})
        direct = _once(path, Certificate, partial(certify, subject.vote, pixels, subject.options))
        kept = settled[row].certificate.model_copy(update={"exploratory": None})
        settled[row] = settled[row]._replace(same=direct == kept)
    return settled


def billed(subjects: Sequence[SmoothedSubject]) -> list[Billed]:
    """The cost of what is missing; noise that several subjects share is billed to the first."""
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
            if row < question.direct and not _cell(subject, pixels, {"direct": True}).exists():
                direct = direct.plus(one)
            assault = question.assault
            if assault is not None and not all(
                _attack_cell(subject, assault, pixels, *parts).exists()
                for parts in itertools.product(assault.factors, ("l2", "linf"))
            ):
                attacks = attacks.plus(assault_bill(assault, subject.vote, options.n))
        bills.append(Billed(subject, kept, certificates, attacks, direct))
    return bills


def _certified(subject: SmoothedSubject, index: int) -> Settled:
    """From stored embeddings, which are made if they are missing."""
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
    pixels, options, assault = subject.pixels(index), subject.options, subject.question.assault
    assert assault is not None
    score = _score(subject, pixels, certificate)
    attack = partial(attack_certificate, score, subject.vote, pixels, certificate, assault=assault)
    for factor, ball in assault.balls(certificate):
        path = _attack_cell(subject, assault, pixels, factor, ball.kind)
        yield _once(path, Attempt, partial(attack, ball, factor=factor, seed=options.seed, votes=options.n))


def _score(subject: SmoothedSubject, pixels: Tensor, certificate: Certificate) -> Score:
    """Margins of single draws against the certified label; gradients pass each defense as it declares."""
    classifier = subject.classifier
    victim = deploy(
        subject.clip,
        subject.found.prompts,
        classifier.labels,
        defense=(subject.rule, *subject.chain),
        encoder=classifier.encoder,
        name=subject.found.name,
        text=lambda: classifier.weights,
        scoring=classifier.scoring,
    )
    aim = Aim(truth=classifier.labels.index(certificate.label))
    access = DeviceAccess(guard=partial(guarded, chunk_rows=VOTES_A_PASS))
    attacker = Attacker(victim, aim, "margin", eot=1, access=access)
    return attacker.score("adaptive", pixels[None], draw_seeds(subject.options.seed, 1))


def _attack_cell(
    subject: SmoothedSubject, assault: Assault, pixels: Tensor, factor: float, norm: str
) -> Path:
    return _cell(subject, pixels, {**assault.model_dump(exclude={"factors"}), "factor": factor, "norm": norm})


def _cell(subject: SmoothedSubject, pixels: Tensor, part: dict[str, object]) -> Path:
    """Where an answer about a certificate is: named by all that the certificate and the answer depend on."""
    key = {
        "noise": subject.key(pixels).model_dump(mode="json"),
        "prompts": subject.found.prompts.digest(),
        "labels": list(subject.classifier.labels),
        "alpha": subject.options.alpha,
        "device": subject.question.device,
        **part,
    }
    return cell_path(subject.question.runs / "certified", key)


def _once(path: Path, model: type[M], make: Callable[[], M]) -> M:
    """The answer at `path`, or else a new one. DataRefused for a file that holds something else."""
    answer = finished.once(
        path,
        recall=lambda: finished.recall(path, model, "answer about a certificate"),
        make=make,
        keep=lambda made: finished.keep(path, made.model_dump_json()),
    )
    assert answer is not None  # we wait for whoever is making it
    return answer
