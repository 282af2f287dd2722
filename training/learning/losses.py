"""One family of losses; every method is a choice of its coefficients.

    L = a CE(p(x), y) + b CE(p(x_a), y) + c mean_i[ w_i sum_r share_ri D(r_i, p(x_a,i)) ] + feature terms +
    anchors

x clean, x_a attacked pixels, p the tuned model's distribution over labels, r reference distributions, D a
divergence. The caller detaches what is to be constant; only `reliability` does so itself.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from robustclip.types import Features, Logits

DivergenceName: TypeAlias = Literal["forward", "reverse", "jensen_shannon"]
RELIABILITY_RANGE = (0.2, 5.0)


class Reference(NamedTuple):
    """A target of attacked predictions: the logits [B, C] of a distribution, and its share, one number or
    [B].
    """

    logits: Logits
    share: Tensor | float = 1.0


def family(
    targets: Tensor,
    *,
    clean: Logits | None = None,
    attacked: Logits | None = None,
    references: Sequence[Reference] = (),
    a: float = 0.0,
    b: float = 0.0,
    c: float = 0.0,
    weights: Tensor | None = None,
    kind: DivergenceName = "forward",
) -> dict[str, Tensor]:
    """The terms of the family whose coefficient is not 0, each [] and already weighted: `clean`, `attacked`,
    `consistency`.

    targets [B]; clean, attacked, references [B, C] logits, needed where their coefficient is not 0; weights
    [B], none: all 1.
    """
    terms: dict[str, Tensor] = {}
    if a and clean is not None:
        terms["clean"] = a * F.cross_entropy(clean, targets)
    if b and attacked is not None:
        terms["attacked"] = b * F.cross_entropy(attacked, targets)
    if c and attacked is not None:
        each = torch.stack(
            [reference.share * divergence(reference.logits, attacked, kind) for reference in references]
        ).sum(dim=0)
        terms["consistency"] = c * (each if weights is None else weights * each).mean()
    return terms


def divergence(reference: Logits, prediction: Logits, kind: DivergenceName = "forward") -> Tensor:
    """[B] between the softmaxes of two [B, C] logits, in nats; gradients reach both.

    forward KL(reference, prediction); reverse KL(prediction, reference); jensen_shannon the mean of both KLs
    to their mixture, at most ln 2.
    """
    log_reference, log_prediction = reference.log_softmax(dim=1), prediction.log_softmax(dim=1)
    if kind == "forward":
        return _kl(log_reference, log_prediction)
    if kind == "reverse":
        return _kl(log_prediction, log_reference)
    mixture = torch.logaddexp(log_reference, log_prediction) - math.log(2)
    return (_kl(log_reference, mixture) + _kl(log_prediction, mixture)) / 2


def reliability(logits: Logits, targets: Tensor) -> Tensor:
    """[B] weights p(y|x) over their batch mean, clipped to [0.2, 5], detached: examples that the reference
    misclassifies count less.
    """
    confidence = target_probability(logits, targets).detach()
    return (confidence / confidence.mean().clamp_min(torch.finfo(confidence.dtype).tiny)).clamp(
        *RELIABILITY_RANGE
    )


def target_probability(logits: Logits, targets: Tensor) -> Tensor:
    """[B] softmax probability of the targets."""
    return logits.softmax(dim=1).gather(1, targets[:, None])[:, 0]


def misalignment(features: Features, reference: Features) -> Tensor:
    """[] mean of 1 - cos over rows [B, E]: of images against a teacher's, of text features against a
    teacher's or an anchor's.
    """
    return (1 - F.cosine_similarity(features, reference, dim=1)).mean()


def _kl(log_reference: Tensor, log_prediction: Tensor) -> Tensor:
    return (log_reference.exp() * (log_reference - log_prediction)).sum(dim=1)
