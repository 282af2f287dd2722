"""JPEG compression (Dziugaite et al. 2016, arXiv 1608.00853; Guo et al. 2018, arXiv 1711.00117).

Pillow encodes and decodes. Of the two gradients, the identity is plain BPDA; the soft codec knows which
frequencies survive (Shin & Song 2017).
"""

import io
from typing import ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from robustclip.defenses.base import (
    PixelDefense,
    Status,
    cosines,
    straight_through,
    to_rgb,
    to_ycbcr,
    unchanged,
)
from robustclip.types import Pixels, Seeds

# Quantisation steps at quality 50 (ITU-T T.81, annex K.1): brightness, color.
_BRIGHTNESS = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_COLOR = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)


class Jpeg(PixelDefense):
    """Encode and decode by Pillow; `backward` chooses the soft codec's gradient or the identity's."""

    kind: Literal["jpeg"] = "jpeg"
    quality: int = Field(default=75, ge=1, le=100)
    subsampling: Literal["4:2:0", "4:4:4"] = "4:2:0"
    backward: Literal["soft", "identity"] = "soft"

    status: ClassVar[Status] = "broken-adaptively"
    cost: ClassVar[str] = "1 image pass and a JPEG encoding on the CPU"
    strength: ClassVar[str] = "quality"

    @property
    def gradient(self) -> str:
        return "surrogate:soft_jpeg" if self.backward == "soft" else "ste"

    def __call__(self, inputs: Pixels, seeds: Seeds) -> Pixels:
        return straight_through(self._encode, inputs, self._soft if self.backward == "soft" else unchanged)

    def _encode(self, pixels: Pixels) -> Pixels:
        levels = (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        decoded: list[Tensor] = []
        for picture in levels:
            file = io.BytesIO()
            Image.fromarray(picture).save(file, "JPEG", quality=self.quality, subsampling=self.subsampling)
            decoded.append(torch.from_numpy(np.array(Image.open(file))))
        return torch.stack(decoded).permute(0, 3, 1, 2).to(pixels) / 255

    def _soft(self, pixels: Pixels) -> Pixels:
        return soft_jpeg(pixels, quality=self.quality, halved_color=self.subsampling == "4:2:0")


def soft_jpeg(pixels: Pixels, *, quality: int, halved_color: bool) -> Pixels:
    """JPEG without entropy coding, with a rounding that has a gradient.

    On photographs within 3/255 of Pillow on average.
    """
    height, width = pixels.shape[-2:]
    padded = F.pad(pixels * 255, (0, -width % 16, 0, -height % 16), mode="replicate")
    planes = to_ycbcr(padded)
    brightness, color = planes[:, :1], planes[:, 1:]
    color = F.avg_pool2d(color, 2) if halved_color else color
    brightness = _quantise_blocks(brightness - 128, _steps(_BRIGHTNESS, quality)) + 128
    color = _quantise_blocks(color, _steps(_COLOR, quality))
    if halved_color:
        color = F.interpolate(color, scale_factor=2.0, mode="bilinear", align_corners=False)
    return to_rgb(torch.cat([brightness, color], dim=1))[..., :height, :width].clamp(0, 255) / 255


def _steps(table: tuple[tuple[int, ...], ...], quality: int) -> Tensor:
    """[8, 8] quantisation steps of libjpeg at a quality of 1 to 100."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((torch.tensor(table) * scale + 50) // 100).clamp(1, 255).float()


def _quantise_blocks(planes: Tensor, steps: Tensor) -> Tensor:
    """Planes [B, P, H, W] through the cosine transform of their 8 x 8 blocks, quantised, and back."""
    batch, count, height, width = planes.shape
    waves, divisors = cosines(8).to(planes), steps.to(planes)
    # [B, P, H/8, W/8, 8, 8]
    blocks = planes.reshape(batch, count, height // 8, 8, width // 8, 8).transpose(3, 4)
    frequencies = waves @ blocks @ waves.T / divisors
    restored = waves.T @ (_soft_round(frequencies) * divisors) @ waves
    return restored.transpose(3, 4).reshape(batch, count, height, width)


def _soft_round(values: Tensor) -> Tensor:
    """round(v) + (v - round(v))^3: exact at integers, with a gradient between them (Shin & Song 2017)."""
    nearest = values.round()
    return nearest + (values - nearest) ** 3
