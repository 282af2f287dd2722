"""Certificates by randomized smoothing: a radius within which no change alters the smoothed decision.

CERTIFY of Cohen et al. 2019 (arXiv 1902.02918), section 3.2.2 and theorem 1: some votes choose a label, other
votes bound its share from below. The statement is about the smoothed classifier, never about the plain one,
and holds with probability 1 - alpha over the draws. Embeddings of noisy copies depend neither on labels nor
on text prompts; with cached ones (robustclip/certificates/noise_cache.py) the next list of labels costs a
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
from robustclip.models import Defended, ZeroShotClassifier
from robustclip.purifiers import Weights
from robustclip.seeds import derive, draw_seeds
from robustclip.threat import BallSpec
from robustclip.types import Classifier, Features, Seeds

MAX_DRAWS = 1_000_000

OnRows = Callable[[int], None]


class NoiseOptions(BaseModel):
    """How much noise, and how many votes.

    `n0` votes choose the label, `n` others bound its share; `alpha` is the chance of a wrong statement.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    sigma: Sigma = 0.25
    n0: Annotated[int, Field(ge=1, le=MAX_VOTES)] = 100
    n: Annotated[int, Field(ge=1, le=MAX_DRAWS)] = 1000
    alpha: Alpha = 0.001


class CertifyOptions(NoiseOptions):
    """The same with the seed of all draws, and the weights of a denoiser, if any (`Smoothing.denoise`)."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    denoise: Weights | None = None


class Certificate(BaseModel):
    """What is certified about one smoothed decision at one picture."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    label: str = Field(description="the label that the first votes chose")
    abstained: bool = Field(description="the label's true share may be a half or less: nothing is certified")
    sigma: float
    n0: int
    n: int
    hits: int = Field(description="fresh votes for the label")
    share: float = Field(description="lower bound of the label's true share, wrong with probability alpha")
    alpha: float = Field(
        description="chance that this statement is wrong; of several made at once, the part of this one"
    )
    radius_l2: float = Field(
        description="the smoothed decision is the same at every point nearer than this, pixel units of [0, 1]"
    )
    radius_linf: float = Field(
        description="the same for changes of every value: radius_l2 / sqrt(number of values)"
    )
    exploratory: bool | None = Field(
        default=None,
        description="this noise has been used for another question, so alpha does not hold; absent where no "
        "record exists",
    )

    def covers(self, ball: BallSpec) -> bool:
        """Whether no change inside the ball alters the smoothed decision."""
        return not self.abstained and ball.radius < (
            self.radius_l2 if ball.kind == "l2" else self.radius_linf
        )


class NoisyFeatures(NamedTuple):
    """Unit features of noisy copies of a picture: `choosing` [N0, E] and `counting` [N, E].

    They share no draw.
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
    """One vote: noise, a denoiser if `denoise` names one, then the chain behind it.

    Raises InvalidInput for a chain with smoothing in it, PurifierRefused for weights that can't be used.
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
    """The certificate of one picture [3, S, S], deterministic given `options.seed` and the picture.

    `vote` is the classifier of one draw of noise of `options.sigma`; `on_rows` is called with each batch's
    number of rows. Costs n0 + n forward passes.
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
    """The features that `certify` would compute, to be judged later; labels do not matter.

    Each portion has its own draws.
    """
    with torch.no_grad():
        choosing, counting = (
            draw(vote.features, pixels, seeds, on_rows=on_rows)
            for seeds in noise_seeds(pixels, options, portion=portion)
        )
    return NoisyFeatures(choosing, counting)


def certify_features(
    classifier: ZeroShotClassifier,
    noisy: NoisyFeatures,
    values: int,
    options: CertifyOptions,
    *,
    statements: int = 1,
    exploratory: bool | None = None,
) -> Certificate:
    """`certify` from features of a picture with `values` (3 S S) values, for the classifier's labels.

    `statements`: how many are made from the same draws; each gets its part of `options.alpha`.
    """
    choosing, counting = (count_features(classifier, features) for features in noisy)
    shared = options.model_copy(update={"alpha": options.alpha / statements})
    return conclude(choosing, counting, classifier.labels, values, shared, exploratory=exploratory)


def count_features(classifier: ZeroShotClassifier, features: Features) -> Tensor:
    """[C] int64: how many of the noisy copies [V, E] the classifier assigns to each label.

    They are judged in the batches in which they would be encoded.
    """
    with torch.no_grad():
        return sum(
            (count_votes(classifier.judge(part)) for part in features.split(VOTES_A_PASS)),
            torch.zeros((), dtype=torch.int64),
        )


def noise_seeds(pixels: Tensor, options: CertifyOptions, *, portion: int = 0) -> tuple[Seeds, Seeds]:
    """[n0] and [n] seeds for choosing and counting; each picture and portion has its own."""
    stream = f"{tensor_digest(pixels)}-{portion}"
    choosing = derive(draw_seeds(options.seed, options.n0), f"choosing-{stream}")
    return choosing, derive(draw_seeds(options.seed, options.n), f"counting-{stream}")


def conclude(
    choosing: Tensor,
    counting: Tensor,
    labels: Sequence[str],
    values: int,
    options: CertifyOptions,
    *,
    exploratory: bool | None = None,
) -> Certificate:
    """The certificate that follows from votes [C] to choose by and other votes [C] to count."""
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
