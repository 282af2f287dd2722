"""The attack of hardening, in training and in the checks."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from robustclip.threat import Linf
from robustclip.types import Pixels
from training.learning.losses import climb


class Strength(NamedTuple):
    """Signed gradient steps within `eps` of the picture."""

    eps: float
    steps: int
    step: float

    @staticmethod
    def of(eps: float, steps: int) -> "Strength":
        """2.5 radii in all, as in Madry et al. 2018 (arXiv 1706.06083); no step is longer than the radius."""
        return Strength(eps, steps, min(eps, 2.5 * eps / steps))

    def attack(self, loss: Callable[[Pixels], Tensor], pixels: Pixels, noise: Tensor) -> Pixels:
        """Raise `loss` [B], beginning at `pixels + eps * noise`; `noise` is in [-1, 1]."""
        start = Linf(radius=self.eps).project(pixels + self.eps * noise, pixels)
        return climb(loss, pixels, start, eps=self.eps, step=self.step, steps=self.steps)[0]
