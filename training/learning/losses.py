"""One family of losses, of which every method is a choice of coefficients, and the attack that raises them.

    L = a CE(p(x), y) + b CE(p(x_a), y) + c mean_i[ w_i sum_r share_ri D(r_i, p(x_a,i)) ] + feature terms +
    anchors

x clean, x_a attacked pixels, p the tuned model's distribution over labels, r reference distributions, D a
divergence. The caller detaches what is to be constant; only `reliability` does so itself.

The training attack is a few sign steps on pixels, everything else constant. It is not `attacks.pgd.PGD`,
which also evaluates its last point: here the forward pass of the training step does that, and saves a fifth
of the cost at two steps. Prompts are constant inside the attack, so text features are computed once, outside;
towers are frozen, so the backward reaches pixels only.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from robustclip.models import Clip, encode_image
from robustclip.threat import Linf
from robustclip.types import Cost, Features, Logits, Pixels, Seeds

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


InnerScore: TypeAlias = Literal["cross_entropy", "kl"]
TowerPrecision: TypeAlias = Literal["bf16", "float32"]

KEPT_LEVELS = 127  # a kept perturbation is int8, in units of eps / 127


@dataclass(frozen=True, eq=False)
class Opponent:
    """The model that the inner attack climbs: unit text features [C, E] and visual prompts, both detached.

    Towers may run in bfloat16: it has float32's range, so that nothing underflows at CLIP's temperature, and
    the sign of a gradient needs little precision. The training loss is in float32.
    """

    clip: Clip
    weights: Features
    visual: Tensor | None
    precision: TowerPrecision = "bf16"

    def logits(self, pixels: Pixels) -> Logits:
        with torch.autocast(pixels.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            embeddings = encode_image(self.clip, pixels, self.visual)
        return self.clip.logit_scale * F.normalize(embeddings.float(), dim=-1) @ self.weights.T


def label_loss(opponent: Opponent, targets: Tensor) -> Callable[[Pixels], Tensor]:
    """[B] cross-entropy of the targets."""
    return lambda pixels: F.cross_entropy(opponent.logits(pixels), targets, reduction="none")


def consistency_loss(opponent: Opponent, clean: Logits) -> Callable[[Pixels], Tensor]:
    """[B] KL(p(x), p(x_a)). Its gradient at the clean picture is 0: start elsewhere."""
    reference = clean.detach()
    return lambda pixels: divergence(reference, opponent.logits(pixels))


def climb(
    loss: Callable[[Pixels], Tensor], pixels: Pixels, start: Pixels, *, eps: float, step: float, steps: int
) -> tuple[Pixels, Cost]:
    """The last of `steps` sign steps up the loss, each brought back into the ball of radius eps around
    `pixels` and into [0, 1]; and its cost.
    """
    ball, current = Linf(radius=eps), start.detach()
    for _ in range(steps if eps else 0):
        inputs = current.requires_grad_()
        gradient = torch.autograd.grad(loss(inputs).sum(), inputs)[0]
        current = ball.project(ball.ascend(inputs.detach(), gradient, step), pixels)
    passes = len(pixels) * steps if eps else 0
    return current.detach(), Cost(passes, passes)


def drawn_start(pixels: Pixels, seeds: Seeds, eps: float) -> Pixels:
    """Uniform in the ball, each row from its seed."""
    return Linf(radius=eps).sample(pixels, seeds)


def keep_change(attacked: Pixels, pixels: Pixels, eps: float) -> Tensor:
    """The change as int8 in units of eps / 127."""
    return ((attacked - pixels) * (KEPT_LEVELS / eps)).round().clamp(-KEPT_LEVELS, KEPT_LEVELS).to(torch.int8)


def kept_start(pixels: Pixels, kept: Tensor, eps: float) -> Pixels:
    """The picture with a kept change, inside ball and box."""
    return Linf(radius=eps).project(pixels + kept.to(pixels) * (eps / KEPT_LEVELS), pixels)
