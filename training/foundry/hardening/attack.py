"""The attack that hardening defends against: how strong it is, in training and in the checks."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from robustclip.threat import Linf
from robustclip.types import Pixels
from training.learning.inner import climb


class Strength(NamedTuple):
    """Signed gradient steps within `eps` of the picture."""

    eps: float
    steps: int
    step: float

    @staticmethod
    def of(eps: float, steps: int) -> "Strength":
        """2.5 radii over all steps, as in Madry et al. 2018 (arXiv 1706.06083), but no step longer than the
        radius.
        """
        return Strength(eps, steps, min(eps, 2.5 * eps / steps))

    def attack(self, loss: Callable[[Pixels], Tensor], pixels: Pixels, noise: Tensor) -> Pixels:
        """Raise `loss` [B] from where `noise` in [-1, 1], like the pixels, says."""
        start = Linf(radius=self.eps).project(pixels + self.eps * noise, pixels)
        return climb(loss, pixels, start, eps=self.eps, step=self.step, steps=self.steps)[0]
