"""The inner attack of adversarial prompt learning: a few sign steps on pixels, everything else constant.

It is not `attacks.pgd.PGD`, which also evaluates its last point: here the forward pass of the training step
does that, and saves a fifth of the cost at two steps. Prompts are constant inside the attack, so text
features are computed once, outside; towers are frozen, so the backward reaches pixels only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from robustclip.models.clip import Clip
from robustclip.models.towers import encode_image
from robustclip.threat import Linf
from robustclip.types import Cost, Features, Logits, Pixels, Seeds
from training.learning.losses import divergence

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
