"""Wavelet denoising: BayesShrink (Chang, Yu & Vetterli 2000) with Haar's wavelet, as a defense in Mustafa et
al. 2019 (arXiv 1901.01677).

AdvPT's code names this step "super resolution".
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from robustclip.defenses.base import PixelDefense, Status, to_rgb, to_ycbcr
from robustclip.types import Pixels, Seeds


class Wavelet(PixelDefense):
    """Soften the details of brightness and colors at `levels` scales, each band by a threshold of its own:
    sigma^2 / what deviation is not noise.

    `sigma` is the noise that is taken for granted, in pixel units: about half the radius that is feared. The
    gradient passes through thresholds and details, and is exact almost everywhere. Deviation from Mustafa et
    al.: the same sigma for brightness and colors.
    """

    kind: Literal["wavelet"] = "wavelet"
    sigma: float = Field(default=0.02, ge=0.0, le=0.5, allow_inf_nan=False)
    levels: int = Field(default=3, ge=1, le=5)

    status: ClassVar[Status] = "broken-adaptively"
    cost: ClassVar[str] = "1 image pass"
    strength: ClassVar[str] = "sigma"

    def __call__(self, inputs: Pixels, seeds: Seeds) -> Pixels:
        height, width = inputs.shape[-2:]
        block = 2**self.levels
        padded = F.pad(inputs, (0, -width % block, 0, -height % block), mode="replicate")
        return to_rgb(denoised(to_ycbcr(padded), self.sigma, self.levels))[..., :height, :width].clamp(
            0.0, 1.0
        )


def denoised(planes: Tensor, sigma: float, levels: int) -> Tensor:
    """Planes [..., H, W] without noise of that deviation; H and W are multiples of 2^levels."""
    if levels == 0:
        return planes
    a, b, c, d = (planes[..., row::2, column::2] for row in (0, 1) for column in (0, 1))
    mean = denoised((a + b + c + d) / 2, sigma, levels - 1)
    across, down, diagonal = (
        _shrunk(band / 2, sigma) for band in (a - b + c - d, a + b - c - d, a - b - c + d)
    )
    upper = torch.stack([mean + across + down + diagonal, mean - across + down - diagonal], dim=-1).flatten(
        -2
    )
    lower = torch.stack([mean + across - down - diagonal, mean - across - down + diagonal], dim=-1).flatten(
        -2
    )
    return torch.stack([upper, lower], dim=-2).flatten(-3, -2) / 2


def _shrunk(band: Tensor, sigma: float) -> Tensor:
    """Details [..., h, w] brought toward 0 by a threshold a plane: the noise's variance over the deviation of
    the rest.
    """
    variance = band.square().mean(dim=(-2, -1), keepdim=True)
    threshold = sigma**2 / (variance - sigma**2).clamp_min(1e-8).sqrt()
    return band.sign() * (band.abs() - threshold).relu()
