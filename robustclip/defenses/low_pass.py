"""A Gaussian low pass: remove the finest frequencies. A defense whose effect can be argued.

It is a fixed linear map with positive weights that sum to 1. So it lengthens no change, in any norm, and its
gradient is dense and exact: nothing can be bypassed, averaged away or masked. What it gains is real, and
small: the attacker keeps the low frequencies and only their part of the tower's gradient. If the tower uses
all frequencies alike and a quarter of them stays, that is half. Denoisers that adapt to the picture (median,
total variation, wavelets) keep detail in textured regions, and with it the attack.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from robustclip.defenses.base import PixelDefense, Status, cosines
from robustclip.types import Pixels, Seeds


class LowPass(PixelDefense):
    """A frequency of f cycles a pixel keeps exp(-(f / cutoff)^2 / 2) of its amplitude; 0.5 is the highest.

    This is a blur with a standard deviation of 0.16 / cutoff pixels. Borders are mirrored instead of
    continued at the opposite side, as a Fourier transform would.
    """

    kind: Literal["low_pass"] = "low_pass"
    cutoff: float = Field(default=0.18, ge=0.01, le=1000.0, allow_inf_nan=False)

    status: ClassVar[Status] = "experimental"
    cost: ClassVar[str] = "1 image pass"
    strength: ClassVar[str] = "cutoff"

    def __call__(self, inputs: Pixels, seeds: Seeds) -> Pixels:
        height, width = inputs.shape[-2:]
        rows, columns = (self._blur(size).to(inputs) for size in (height, width))
        # Cut off at the highest frequency, some weights are negative by a thousandth: hence the clamp.
        return (rows @ inputs @ columns.T).clamp(0.0, 1.0)

    def _blur(self, size: int) -> Tensor:
        """[size, size] from samples to frequencies and back."""
        waves = cosines(size)
        frequency = torch.arange(size) / (2 * size)
        return waves.T * torch.exp(-((frequency / self.cutoff) ** 2) / 2) @ waves
