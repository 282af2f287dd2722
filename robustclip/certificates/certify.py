"""Certificates by randomized smoothing: a radius within which no change whatever turns the smoothed decision.

CERTIFY of Cohen et al. 2019 (arXiv 1902.02918), section 3.2.2 and theorem 1: some votes choose a label, fresh
ones bound its share from below. The statement is about the smoothed classifier, never about the plain one,
and holds with probability 1 - alpha over the draws. Embeddings of noisy copies do not depend on labels or
text prompts: who keeps them (robustclip/certificates/noise_cache.py) certifies the next list of labels by a
matrix product.
"""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from scipy import special
from torch import Tensor

from robustclip.certificates.vote import VOTES_A_PASS, count_votes, draw, lower_bound
from robustclip.defenses import AnyDefense, bind_chain
from robustclip.defenses.smoothing import MAX_VOTES, Alpha, Sigma, Smoothing
from robustclip.digests import tensor_digest
from robustclip.errors import InvalidInput
from robustclip.models.classifier import Defended, ZeroShotClassifier
from robustclip.purifiers import Weights
from robustclip.seeds import derive, draw_seeds
from robustclip.threat import BallSpec
from robustclip.types import Classifier, Features, Seeds

MAX_DRAWS = 1_000_000

OnRows = Callable[[int], None]


class NoiseOptions(BaseModel):
    """How much noise, and how many votes: `n0` choose the label, `n` others bound its share; `alpha` is the
    chance that a statement is wrong.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sigma: Sigma = 0.25
    n0: Annotated[int, Field(ge=1, le=MAX_VOTES)] = 100
    n: Annotated[int, Field(ge=1, le=MAX_DRAWS)] = 1000
    alpha: Alpha = 0.001


class CertifyOptions(NoiseOptions):
    """The same with what decides all draws, and the weights of a denoiser that takes the noise away, if one
    does (`Smoothing.denoise`).
    """

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    denoise: Weights | None = None


class Certificate(BaseModel):
    """What is certain of one smoothed decision at one picture."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str = Field(description="the label that the first votes chose")
    abstained: bool = Field(
        description="its share of the fresh votes may be a half or less: nothing is certified"
    )
    sigma: float
    n0: int
    n: int
    hits: int = Field(description="fresh votes for the label")
    share: float = Field(description="lower bound of the label's true share, wrong with probability alpha")
    alpha: float = Field(
        description="chance that this statement is wrong; where several were asked for at once, its part"
    )
    radius_l2: float = Field(
        description="the smoothed decision is the same at every point nearer than this, pixel units of [0, 1]"
    )
    radius_linf: float = Field(
        description="what that implies if every value may change: radius_l2 over the root of their number"
    )
    exploratory: bool | None = Field(
        default=None,
        description="this noise had answered another question before, so alpha does not hold; absent where "
        "no record is kept",
    )

    def covers(self, ball: BallSpec) -> bool:
        """Whether no change inside the ball turns the smoothed decision."""
        return not self.abstained and ball.radius < (
            self.radius_l2 if ball.kind == "l2" else self.radius_linf
        )


class NoisyFeatures(NamedTuple):
    """Unit features of noisy copies of one picture: `choosing` [N0, E] and `counting` [N, E] share no
    draw.
    """

    choosing: Features
    counting: Features


def noisy_classifier(
    classifier: ZeroShotClassifier,
    sigma: float,
    denoiser: Sequence[AnyDefense] = (),
    *,
    denoise: str | None = None,
) -> Defended:
    """One vote: noise, taken away by the network of weights `denoise` if they are named, then the chain that
    is served behind it.

    Raises InvalidInput for a chain that adds smoothing noise itself, PurifierRefused for weights that can't
    be used.
    """
    for index, spec in enumerate(denoiser):
        if isinstance(spec, Smoothing):
            raise InvalidInput(
                "the noise is added already.",
                field=f"defense/{index}",
                help="Name only what stands behind it.",
            )
    return Defended(
        classifier, bind_chain((Smoothing(sigma=sigma, denoise=denoise), *denoiser), classifier.encoder)
    )


def certify(
    vote: Classifier, pixels: Tensor, options: CertifyOptions, *, on_rows: OnRows = lambda rows: None
) -> Certificate:
    """The certificate of one picture [3, S, S]. `vote` is the classifier of one draw of noise of
    `options.sigma`; `on_rows` hears how many rows each batch had.

    Deterministic given `options.seed` and the picture. Costs n0 + n forward passes.
    """
    with torch.no_grad():
        choosing, counting = (
            count_votes(draw(vote, pixels, seeds, on_rows=on_rows)) for seeds in noise_seeds(pixels, options)
        )
    return conclude(choosing, counting, vote.labels, pixels.numel(), options)


def noisy_features(
    vote: Defended,
    pixels: Tensor,
    options: CertifyOptions,
    *,
    portion: int = 0,
    on_rows: OnRows = lambda rows: None,
) -> NoisyFeatures:
    """What `certify` would encode on its way, to be judged later; its labels do not matter. Other portions
    hold draws never seen before.
    """
    with torch.no_grad():
        return NoisyFeatures(
            *(
                draw(vote.features, pixels, seeds, on_rows=on_rows)
                for seeds in noise_seeds(pixels, options, portion=portion)
            )
        )


def certify_features(
    classifier: ZeroShotClassifier,
    noisy: NoisyFeatures,
    values: int,
    options: CertifyOptions,
    *,
    statements: int = 1,
    exploratory: bool | None = None,
) -> Certificate:
    """`certify` from features of a picture with so many `values` (3 S S), for the classifier's own labels and
    text weights.

    `statements`: how many were asked for before any was seen; each gets that part of `options.alpha`.
    """
    choosing, counting = (count_features(classifier, features) for features in noisy)
    shared = options.model_copy(update={"alpha": options.alpha / statements})
    return conclude(choosing, counting, classifier.labels, values, shared, exploratory=exploratory)


def count_features(classifier: ZeroShotClassifier, features: Features) -> Tensor:
    """[C] int64: how many of the noisy copies [V, E] the classifier gives each label, judged in the batches
    in which they would be encoded.
    """
    with torch.no_grad():
        return sum(
            (count_votes(classifier.judge(part)) for part in features.split(VOTES_A_PASS)),
            torch.zeros((), dtype=torch.int64),
        )


def noise_seeds(pixels: Tensor, options: CertifyOptions, *, portion: int = 0) -> tuple[Seeds, Seeds]:
    """[n0] and [n] seeds of a picture's draws: other ones for every picture, every portion, and for choosing
    and counting.
    """
    own = f"{tensor_digest(pixels)}-{portion}"
    return derive(draw_seeds(options.seed, options.n0), f"choosing-{own}"), derive(
        draw_seeds(options.seed, options.n), f"counting-{own}"
    )


def conclude(
    choosing: Tensor,
    counting: Tensor,
    labels: Sequence[str],
    values: int,
    options: CertifyOptions,
    *,
    exploratory: bool | None = None,
) -> Certificate:
    """The certificate that follows from votes [C] to choose by and fresh votes [C]."""
    chosen = int(choosing.argmax())
    hits = int(counting[chosen])
    share = lower_bound(hits, options.n, alpha=options.alpha)
    abstained = share <= 0.5
    radius = 0.0 if abstained else options.sigma * float(special.ndtri(share))
    return Certificate(
        label=labels[chosen],
        abstained=abstained,
        sigma=options.sigma,
        n0=options.n0,
        n=options.n,
        hits=hits,
        share=share,
        alpha=options.alpha,
        radius_l2=radius,
        radius_linf=radius / math.sqrt(values),
        exploratory=exploratory,
    )
