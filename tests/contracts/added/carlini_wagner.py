"""Carlini and Wagner's attack (2017, arXiv 1608.04644) in a ball: Adam on the margin, which is their f_6.

Deviations: projection into the ball instead of a change of variables and a penalty on the distance; a row
that reached its goal leaves.
"""

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from pydantic import Field

from robustclip.attacks.base import BallAttack, Options, Search, gradient_of
from robustclip.types import Cost


class CarliniWagner(BallAttack):
    """Climb by Adam from the picture itself. `rate` is Adam's, in pixel units."""

    quick: ClassVar[Options] = {"steps": 20}
    kind: Literal["carlini_wagner"] = "carlini_wagner"
    steps: int = Field(default=60, ge=1, le=10_000)
    rate: float = Field(default=0.01, gt=0, le=1)

    def passes(self) -> Cost:
        return Cost(self.steps + 1, self.steps)

    def explore(self, search: Search) -> Iterator[None]:
        current = search.origin
        mean = square = torch.zeros_like(current)
        for step in range(self.steps + 1):
            final = step == self.steps
            seen = search.ask(current, search.streams(f"step-{step}"), grad=not final)
            if not final:
                gradient = gradient_of(seen)
                mean, square = mean.lerp(gradient, 0.1), square.lerp(gradient.square(), 0.001)
                sizes = (square / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
                climbed = current + self.rate * mean / (1 - 0.9 ** (step + 1)) / sizes
                current = self.ball.project(climbed, search.origin, radius=search.limits)
            stay = search.leave(seen.margin > 0)
            current, mean, square = current[stay], mean[stay], square[stay]
            yield
