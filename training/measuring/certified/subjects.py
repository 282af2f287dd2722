"""The question of `robustclip certified`, its subjects (prompt sets under smoothed rules on labelled
pictures), and attacks on their certificates.

The smoothed vote is attacked near its certified radius, and fresh votes judge the result. A right certificate
can't fall inside its radius. If one does, the implementation is wrong, or the event of chance alpha has
happened.
"""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from robustclip.attacks import MAX_STARTS, PGD, Start
from robustclip.certificates.certify import Certificate, CertifyOptions, noisy_classifier
from robustclip.certificates.noise_cache import NoiseKey
from robustclip.certificates.vote import count_votes, draw, elect, lower_bound
from robustclip.defenses import AnyDefense, parse_defenses
from robustclip.defenses.smoothing import Smoothing
from robustclip.digests import tensor_digest
from robustclip.errors import InvalidInput, PurifierRefused
from robustclip.models import Clip, Defended, TorchImageEncoder, ZeroShotClassifier, load_clip, zero_shot
from robustclip.scores import drawn
from robustclip.seeds import derive, draw_seeds
from robustclip.threat import L2, BallSpec, L2Radius, Linf, Norm
from robustclip.types import Classifier, Cost, Evaluation, Pixels, Score, Seeds, price
from training.data.labelled import LabelledImages
from training.data.sampling import balanced_subset
from training.data.sources import Source
from training.measuring.evaluation.question import NO_DEFENSE, SUBSET_SEED, AskedSet, load_prompts, of_seed

# a label that kept its majority mostly shows it in so many votes; that it lost it is only ever said after all
_FIRST_LOOK = 100

Factor = Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]


class Assault(BaseModel, frozen=True, extra="forbid"):
    """How a certificate is attacked: by PGD on the mean vote, from the picture itself and then from random
    starts, every climb to its worst point.

    factors   of the certified radius: below 1 nothing may fall, far above it an attack that works succeeds
    draws     of noise behind each gradient
    restarts  random starts
    """

    factors: tuple[Factor, ...] = Field((0.99,), min_length=1, max_length=10)
    steps: int = Field(10, ge=1, le=1000)
    draws: int = Field(16, ge=2, le=1000)
    restarts: int = Field(1, ge=0, lt=MAX_STARTS)

    def balls(self, certificate: Certificate) -> Iterator[tuple[float, BallSpec]]:
        """Each factor with the balls that it makes of what is certified, in L2 and in Linf."""
        for factor in self.factors:
            yield factor, L2(radius=factor * certificate.radius_l2)
            yield factor, Linf(radius=min(1.0, factor * certificate.radius_linf))

    def search(self, ball: BallSpec) -> PGD:
        drawn: list[Start] = ["random"] * self.restarts
        return PGD(ball=ball, steps=self.steps, starts=("zero", *drawn), stop="never")


class Attempt(BaseModel, frozen=True, extra="forbid"):
    """What came of one attack on a certificate.

    distance  L2, from the picture to the point that was found
    hits      fresh votes at that point for the certified label, of so many `votes`
    answer    what the smoothed rule answers there; None: it abstains
    fell      the label has lost its majority there: that its share is a half or more has at most the chance
              alpha
    inside    the point is nearer than what is certified
    """

    norm: Norm
    factor: float
    radius: float
    distance: float
    hits: int
    votes: int
    answer: str | None
    fell: bool
    inside: bool
    cost: tuple[int, int]
    seconds: float

    @property
    def refutes(self) -> bool:
        """Whether the certificate is wrong."""
        return self.fell and self.inside


@dataclass(frozen=True, eq=False)
class MeanVote:
    """How much of a smoothed classifier's vote a label lost, from a score whose values are margins; in place
    of `averaged`.

    SmoothAdv (Salman et al. 2019, arXiv 1906.04584): the mean of soft votes is raised, not the mean loss,
    which votes that are lost already would dominate. Deviation: a soft vote is the logistic function of the
    margin in units of the draws' own root mean square, so that at CLIP's logit scale none saturates. The
    margin is the share of lost (hard) votes beyond a half.
    """

    score: Score
    draws: int

    def __call__(self, pixels: Pixels, seeds: Seeds, *, grad: bool) -> Evaluation:
        every = drawn(self.score, pixels, seeds, draws=self.draws, grad=grad)
        margins = every.margin.unflatten(0, (self.draws, len(pixels)))
        size = margins.square().mean(dim=0).sqrt().clamp_min(1e-12)
        soft = torch.sigmoid(margins / size)
        gradient: Tensor | None = None
        if every.grad is not None:
            weights = soft * (1 - soft) / size
            gradient = (
                weights[..., None, None, None] * every.grad.unflatten(0, (self.draws, len(pixels)))
            ).mean(dim=0)
        return Evaluation(soft.mean(dim=0), (margins > 0).float().mean(dim=0) - 0.5, gradient, every.cost)

    def select(self, rows: Tensor) -> "MeanVote":
        return replace(self, score=self.score.select(rows))


def attack_certificate(
    score: Score,
    vote: Classifier,
    pixels: Tensor,
    certificate: Certificate,
    ball: BallSpec,
    *,
    factor: float,
    assault: Assault,
    seed: int,
    votes: int,
) -> Attempt:
    """Attack the certified label at a picture [3, S, S] and judge the point that was found.

    `score` holds the margins of single draws of `vote` against the certified label. At most `votes` judge,
    which share no draw with the certificate, the search or another point; fewer where the first hundred prove
    that the label kept its majority. Deterministic given `seed` and the picture.
    """
    began = time.monotonic()
    seeds = derive(torch.tensor([seed]), f"attack-{ball.kind}-{factor:g}-{tensor_digest(pixels)}")
    attacked = assault.search(ball)(MeanVote(score, assault.draws), pixels[None], seeds)
    point = attacked.pixels[0]
    label = vote.labels.index(certificate.label)
    judges = derive(draw_seeds(seed, votes), f"judging-{ball.kind}-{factor:g}-{tensor_digest(point)}")
    counts = _count(vote, point, judges[:_FIRST_LOOK])
    if votes > _FIRST_LOOK and lower_bound(int(counts[label]), _FIRST_LOOK, alpha=certificate.alpha) <= 0.5:
        counts = counts + _count(vote, point, judges[_FIRST_LOOK:])
    hits, asked = int(counts[label]), int(counts.sum())
    ballot = elect(counts, vote.labels, Smoothing(sigma=certificate.sigma, alpha=certificate.alpha))
    distance = float((point - pixels).double().norm())
    return Attempt(
        norm=ball.kind,
        factor=factor,
        radius=ball.radius,
        distance=distance,
        hits=hits,
        votes=asked,
        answer=None if ballot.abstained else next(iter(ballot.counts)),
        fell=lower_bound(asked - hits, asked, alpha=certificate.alpha) > 0.5,
        inside=distance < certificate.radius_l2,
        cost=attacked.cost.plus(price(vote, asked)),
        seconds=time.monotonic() - began,
    )


def _count(vote: Classifier, point: Tensor, seeds: Seeds) -> Tensor:
    with torch.no_grad():
        return count_votes(draw(vote, point, seeds))


def assault_bill(assault: Assault, vote: Defended, votes: int) -> Cost:
    """What all attacks on one certificate take, at most."""
    searched = assault.search(L2(radius=1)).bill(assault.draws).through(vote.toll)
    return searched.plus(price(vote, votes)).times(2 * len(assault.factors))


class CertifiedQuestion(BaseModel, frozen=True, extra="forbid"):
    """What is to be certified: every prompt set under every rule. Prompt sets share each rule's alpha, since
    they share its noise.

    defense  behind the noise
    radii    L2, at which certified accuracy is given
    direct   of so many pictures the votes are counted again without the kept embeddings
    """

    backbone: str
    pretrained: str | None = None
    prompt_sets: tuple[str, ...] = Field(min_length=1)
    data: Source
    rules: tuple[CertifyOptions, ...] = Field(min_length=1)
    defense: str = NO_DEFENSE
    radii: tuple[L2Radius, ...]
    assault: Assault | None = None
    direct: int = Field(0, ge=0)
    limit: int = Field(0, ge=0)
    store: Path
    runs: Path
    device: str = "cpu"


@dataclass(frozen=True, eq=False)
class SmoothedSubject:
    """A prompt set under a smoothed rule on some pictures. `asked`: the classifiers of all prompt sets;
    `options.alpha` is this one's share.
    """

    question: CertifiedQuestion
    clip: Clip
    data: LabelledImages
    indices: tuple[int, ...]
    found: AskedSet
    chain: tuple[AnyDefense, ...]
    options: CertifyOptions
    classifier: ZeroShotClassifier
    vote: Defended
    asked: tuple[ZeroShotClassifier, ...]

    def pixels(self, index: int) -> Tensor:
        """[3, S, S]."""
        return self.data.pixels([index], self.clip.preprocessing)[0].to(self.clip.device)

    def key(self, pixels: Tensor) -> NoiseKey:
        return NoiseKey.of(self.clip, self.classifier, pixels, self.options, self.chain)

    @property
    def rule(self) -> Smoothing:
        return Smoothing(sigma=self.options.sigma, alpha=self.options.alpha, denoise=self.options.denoise)

    @property
    def words(self) -> str:
        return f"{self.found.name} sigma {self.options.sigma:g}"


def open_smoothed(question: CertifiedQuestion) -> list[SmoothedSubject]:
    """Everything that is to be certified, opened. Raises InvalidInput and its siblings for whatever can't be,
    before anything is computed.
    """
    chain = parse_defenses(question.defense, field="--defense")
    data = question.data.open()
    clip = load_clip(question.backbone, question.pretrained, device=question.device)
    indices = tuple(balanced_subset(data, question.limit, SUBSET_SEED).tolist())
    names = [of_seed(asked, question.data, question.rules[0].seed) for asked in question.prompt_sets]
    found = [load_prompts(name, clip, data.labels, question.store) for name in names]
    encoder = TorchImageEncoder(clip)
    asked = tuple(
        zero_shot(clip, each.prompts, data.labels, encoder=encoder, scoring="softmax") for each in found
    )
    subjects: list[SmoothedSubject] = []
    for options, (each, classifier) in itertools.product(question.rules, zip(found, asked, strict=True)):
        own = options.model_copy(update={"alpha": options.alpha / len(asked)})
        try:
            vote = noisy_classifier(classifier, own.sigma, chain, denoise=own.denoise)
        except (PurifierRefused, InvalidInput) as error:
            error.field = "--denoise" if error.field == "defense/0/denoise" else "--defense"
            raise
        subjects.append(
            SmoothedSubject(question, clip, data, indices, each, chain, own, classifier, vote, asked)
        )
    return subjects
