"""Take away what is finer than the eye needs: a Gaussian low pass, the purifier whose worth can be argued
before it is attacked.

It is a fixed linear map with positive weights that sum to 1. So it never lengthens a change, in any norm, and
its one dense gradient is exact everywhere: nothing in it can be bypassed, averaged away or masked. What it
gains is real, and small: the attacker keeps the low frequencies, and reaches the tower with that part of its
slope only. Where the tower listens to all frequencies alike and a quarter of them stays, that is half.
Denoisers that follow the picture (median, total variation, wavelets) spare the places where it is busy, and
there they spare the attack.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from robustclip.defenses.base import PixelDefense, Status, cosines
from robustclip.types import Pixels, Seeds


class LowPass(PixelDefense):
    """Frequencies of f cycles a pixel keep exp(-(f / cutoff)^2 / 2) of their height; 0.5 is the finest there
    is. Borders are mirrored.

    A blur with a standard deviation of 0.16 / cutoff pixels.
    """

    kind: Literal["low_pass"] = "low_pass"
    cutoff: float = Field(default=0.18, ge=0.01, le=1000.0, allow_inf_nan=False)

    status: ClassVar[Status] = "experimental"
    cost: ClassVar[str] = "1 image pass"
    strength: ClassVar[str] = "cutoff"

    def __call__(self, inputs: Pixels, seeds: Seeds) -> Pixels:
        height, width = inputs.shape[-2:]
        rows, columns = (self._blur(size).to(inputs) for size in (height, width))
        return (rows @ inputs @ columns.T).clamp(
            0.0, 1.0
        )  # cut off at the finest frequency, the weights may dip below 0 by a thousandth

    def _blur(self, size: int) -> Tensor:
        """[size, size] out of samples, into their frequencies and back."""
        waves = cosines(size)
        frequency = torch.arange(size) / (2 * size)
        return waves.T * torch.exp(-((frequency / self.cutoff) ** 2) / 2) @ waves
