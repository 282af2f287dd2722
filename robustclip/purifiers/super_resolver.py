"""A small x2 super-resolver: what to add to bicubic enlargement, computed at half the picture's size.

Residual blocks without normalisation, and a pixel shuffle at the end, as in EDSR (Lim et al. 2017, arXiv
1707.02921). Deviations: space to depth first, which divides the cost by four; the network adds to a bicubic
enlargement instead of replacing it.
"""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from robustclip.types import Pixels

SCALE = 2
_FOLD = 2


class SuperResolverShape(BaseModel):
    """What decides the tensors: `width` channels in each of `blocks` residual blocks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["super_resolver"] = "super_resolver"
    width: int = Field(default=48, ge=1, le=512)
    blocks: int = Field(default=4, ge=0, le=64)


class SuperResolver(nn.Module):
    """[B, 3, H, W] pixels -> [B, 3, 2H, 2W], for any H and W, not clamped.

    An untrained network is bicubic enlargement.
    """

    def __init__(self, shape: SuperResolverShape) -> None:
        super().__init__()
        self.shape = shape
        self.entry = nn.Conv2d(3 * _FOLD**2, shape.width, 3, padding=1)
        self.blocks = nn.ModuleList([_Residual(shape.width) for _ in range(shape.blocks)])
        self.exit = nn.Conv2d(shape.width, 3 * (_FOLD * SCALE) ** 2, 3, padding=1)
        for parameter in self.exit.parameters():
            nn.init.zeros_(parameter)

    def forward(self, pixels: Pixels) -> Tensor:
        height, width = pixels.shape[-2:]
        even = F.pad(pixels, (0, -width % _FOLD, 0, -height % _FOLD), mode="replicate")
        folded = F.pixel_unshuffle(even - 0.5, _FOLD).contiguous(memory_format=torch.channels_last)
        features = self.entry(folded)
        for block in self.blocks:
            features = block(features)
        details = F.pixel_shuffle(self.exit(features), _FOLD * SCALE)
        return (enlarged(even) + details)[..., : SCALE * height, : SCALE * width]


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        return features + self.second(F.silu(self.first(features)))


def enlarged(pixels: Pixels) -> Tensor:
    """[B, 3, 2H, 2W] by bicubic interpolation, not clamped: the baseline of a super-resolver."""
    return F.interpolate(pixels, scale_factor=SCALE, mode="bicubic", align_corners=False)


def shrunk(pixels: Pixels, height: int, width: int) -> Tensor:
    """[B, 3, height, width] by antialiased bicubic interpolation, not clamped."""
    return F.interpolate(pixels, size=(height, width), mode="bicubic", align_corners=False, antialias=True)
