"""Test-time counterattack, TTC (Xing et al. 2025, arXiv 2503.03613): push a picture away from where its
embedding sits suspiciously still.

The published numbers are of pictures attacked without the defense in mind. What it serves hangs on the
picture only through signs, clips and a gate, so its true derivative is 0 almost everywhere, which is no
robustness: `backward` declares what an attacker gets instead.
"""

from collections.abc import Callable
from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from robustclip.defenses.base import Bound, Declared, Status, clip_of, straight_through, unchanged
from robustclip.models.clip import Clip
from robustclip.models.towers import encode_image
from robustclip.threat import Linf, LinfRadius
from robustclip.types import FREE, Cost, ImageEncoder, Pixels, Seeds


class Counterattack(Declared):
    """Where noise moves the embedding by less than `gate` of its length, climb away from it by `steps` sign
    steps; serve a mean of the way.

    radius    of the noise and of the climb (Linf)
    growth    step i of the way weighs exp(growth * i)
    backward  `identity`: the change is a constant that moves along with the picture. `unrolled`: two
              derivatives of the tower, through a climb with g / (|g| + median |g|) for sign(g) and a soft
              gate, so that an attacker also learns how to be let past it.

    Embeddings are those of the image tower without visual prompts, before they are normalised, in float32.
    The noise is fresh for every row seed.
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
    def passes(self) -> Cost:
        return Cost(self.steps + 1, self.steps) if self.steps else FREE

    @property
    def gradient_passes(self) -> Cost:
        """The unrolled climb again, the way back through its forward passes, and through its gradients, which
        counts as two backward passes each.
        """
        if self.backward == "identity" or not self.steps:
            return FREE
        return Cost(self.steps + 1, self.steps + (self.steps + 1) + 2 * self.steps)

    def bind(self, encoder: ImageEncoder) -> Bound:
        return Bound(self, partial(self._purify, clip_of(encoder)))

    def _purify(self, clip: Clip, inputs: Pixels, seeds: Seeds) -> Pixels:
        def served(pixels: Pixels) -> Pixels:
            # A service runs in inference mode, whose tensors record nothing: a clone outside it does.
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
        way = [start if start.requires_grad else start.requires_grad_()]
        moved = encode_image(clip, start)
        shares = closed(drift(still, moved), self.gate)
        for index in range(self.steps):
            (slope,) = torch.autograd.grad(
                (moved - still).square().sum(), way[-1], create_graph=direction is _soft_sign
            )
            way.append(ball.project(way[-1] + self.step * direction(slope), pixels))
            if index + 1 < self.steps:
                moved = encode_image(clip, way[-1])
        weights = (self.growth * torch.arange(len(way), dtype=torch.float32)).softmax(dim=0).tolist()
        climbed = torch.stack([weight * point for weight, point in zip(weights, way, strict=True)]).sum(dim=0)
        return (start + shares[:, None, None, None] * (climbed - start)).clamp(0.0, 1.0)


def drift(still: Tensor, moved: Tensor) -> Tensor:
    """[B] how far embeddings [B, E] were moved by noise, in their own length: small where a picture sits in a
    hollow that an attack made.
    """
    return ((moved - still).square().sum(dim=1) + 1e-24).sqrt() / still.norm(dim=1)


def _sign(slope: Tensor) -> Tensor:
    return slope.sign()


def _soft_sign(slope: Tensor) -> Tensor:
    size = slope.abs()
    return slope / (size + size.detach().flatten(1).median(dim=1).values[:, None, None, None]).clamp_min(
        1e-12
    )


def _closed_below(drifts: Tensor, gate: float) -> Tensor:
    """[B] 1 where the picture is climbed away from, 0 where it is let past with its noise."""
    return (drifts < gate).to(drifts.dtype)


def _half_closed_at(drifts: Tensor, gate: float) -> Tensor:
    return ((gate - drifts) / (0.1 * gate + 1e-6)).sigmoid()
