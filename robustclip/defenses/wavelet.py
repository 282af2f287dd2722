"""Wavelet denoising: BayesShrink (Chang, Yu & Vetterli 2000) with Haar's wavelet.

A defense in Mustafa et al. 2019 (arXiv 1901.01677). AdvPT's code calls this step "super resolution".
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from robustclip.defenses.base import PixelDefense, Status, to_rgb, to_ycbcr
from robustclip.types import Pixels, Seeds


class Wavelet(PixelDefense):
    """Soft-threshold the details of brightness and colors at `levels` scales.

    The threshold of each band is sigma^2 / the deviation of what is not noise. `sigma` is the assumed noise
    in pixel units, about half the radius of the expected attack. The gradient passes through thresholds and
    details and is exact almost everywhere. Deviation from Mustafa et al.: the same sigma for brightness and
    colors.
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
        clean = to_rgb(denoised(to_ycbcr(padded), self.sigma, self.levels))
        return clean[..., :height, :width].clamp(0.0, 1.0)


def denoised(planes: Tensor, sigma: float, levels: int) -> Tensor:
    """Planes [..., H, W] without noise of deviation sigma; H and W are multiples of 2^levels."""
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
    """Details [..., h, w] moved toward 0; a plane's threshold is noise variance / deviation of the rest."""
    variance = band.square().mean(dim=(-2, -1), keepdim=True)
    threshold = sigma**2 / (variance - sigma**2).clamp_min(1e-8).sqrt()
    return band.sign() * (band.abs() - threshold).relu()
