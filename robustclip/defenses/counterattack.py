"""Test-time counterattack, TTC (Xing et al. 2025, arXiv 2503.03613).

An attacked picture has an embedding that noise hardly moves; the defense pushes such a picture away from it.
The published numbers are of attackers who ignore the defense. Its output depends on the picture only through
signs, clips and a gate, so its true derivative is 0 almost everywhere. That is no robustness: `backward`
declares which gradient an attacker gets instead.
"""

from collections.abc import Callable
from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from robustclip.defenses.base import Bound, Declared, Status, clip_of, straight_through, unchanged
from robustclip.models import Clip, encode_image
from robustclip.threat import Linf, LinfRadius
from robustclip.types import FREE, NO_TOLL, Cost, ImageEncoder, Pixels, Seeds, Toll


class Counterattack(Declared):
    """If noise moves the embedding by less than `gate` of its length, climb away by `steps` sign steps.

    The result is a weighted mean of the points on the way.

    radius    of the noise and of the climb (Linf)
    growth    point i has weight exp(growth * i)
    backward  `identity`: as if the change did not depend on the picture. `unrolled`: second derivatives of
              the tower, with g / (|g| + median |g|) for sign(g) and a soft gate, so that an attacker can also
              learn to keep the gate shut

    Embeddings are those of the image tower before normalisation, in float32 and without a prompt set's visual
    vectors: one encoder serves all sets. Noise comes from row seeds.
    """

    kind: Literal["counterattack"] = "counterattack"
    radius: LinfRadius = 4 / 255
    step: LinfRadius = 1 / 255
    steps: int = Field(default=2, ge=0, le=20)
    gate: float = Field(default=0.2, ge=0.0, le=100.0, allow_inf_nan=False)
    growth: float = Field(default=2.0, ge=0.0, le=20.0, allow_inf_nan=False)
    backward: Literal["identity", "unrolled"] = "identity"

    status: ClassVar[Status] = "broken-adaptively"
    cost: ClassVar[str] = "4 image passes and 2 gradients of the image tower"
    strength: ClassVar[str] = "radius"

    @property
    def randomized(self) -> bool:
        return self.radius > 0

    @property
    def gradient(self) -> str:
        return "ste" if self.backward == "identity" else "surrogate:unrolled"

    @property
    def toll(self) -> Toll:
        """Unrolled: the climb again, then backward through its forward passes and (twice) its gradients."""
        if not self.steps:
            return NO_TOLL
        climb, unrolled = Cost(self.steps + 1, self.steps), self.backward == "unrolled"
        return Toll(climb, climb.plus(Cost(0, self.steps + 1 + 2 * self.steps)) if unrolled else FREE)

    def bind(self, encoder: ImageEncoder) -> Bound:
        return Bound.of(self, partial(self._purify, clip_of(encoder)))

    def _purify(self, clip: Clip, inputs: Pixels, seeds: Seeds) -> Pixels:
        def served(pixels: Pixels) -> Pixels:
            # A service runs in inference mode, whose tensors record no gradient; a clone made outside does.
            with torch.inference_mode(False), torch.enable_grad():
                return self._walk(clip, pixels.clone(), seeds, _sign, _closed_below).detach()

        def soft(pixels: Pixels) -> Pixels:
            with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
                return self._walk(clip, pixels, seeds, _soft_sign, _half_closed_at)

        return straight_through(served, inputs, unchanged if self.backward == "identity" else soft)

    def _walk(
        self,
        clip: Clip,
        pixels: Pixels,
        seeds: Seeds,
        direction: Callable[[Tensor], Tensor],
        closed: Callable[[Tensor, float], Tensor],
    ) -> Pixels:
        ball = Linf(radius=self.radius)
        start = ball.sample(pixels, seeds)
        if self.steps == 0:
            return start
        still = encode_image(clip, pixels)
        points = [start if start.requires_grad else start.requires_grad_()]
        moved = encode_image(clip, start)
        shares = closed(drift(still, moved), self.gate)
        for index in range(self.steps):
            (slope,) = torch.autograd.grad(
                (moved - still).square().sum(), points[-1], create_graph=direction is _soft_sign
            )
            points.append(ball.project(points[-1] + self.step * direction(slope), pixels))
            if index + 1 < self.steps:
                moved = encode_image(clip, points[-1])
        weights = (self.growth * torch.arange(len(points), dtype=torch.float32)).softmax(dim=0).tolist()
        weighted = [weight * point for weight, point in zip(weights, points, strict=True)]
        return (start + shares[:, None, None, None] * (torch.stack(weighted).sum(dim=0) - start)).clamp(
            0.0, 1.0
        )


def drift(still: Tensor, moved: Tensor) -> Tensor:
    """[B] how far noise moved embeddings [B, E], relative to their length; small for attacked pictures."""
    return ((moved - still).square().sum(dim=1) + 1e-24).sqrt() / still.norm(dim=1)


def _sign(slope: Tensor) -> Tensor:
    return slope.sign()


def _soft_sign(slope: Tensor) -> Tensor:
    size = slope.abs()
    return slope / (size + size.detach().flatten(1).median(dim=1).values[:, None, None, None]).clamp_min(
        1e-12
    )


def _closed_below(drifts: Tensor, gate: float) -> Tensor:
    """[B] 1 where the picture is pushed away, 0 where it passes with its noise."""
    return (drifts < gate).to(drifts.dtype)


def _half_closed_at(drifts: Tensor, gate: float) -> Tensor:
    return ((gate - drifts) / (0.1 * gate + 1e-6)).sigmoid()
