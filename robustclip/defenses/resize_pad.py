"""Random resizing and padding (Xie et al. 2018, arXiv 1711.01991), for a tower with one input size."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from robustclip.defenses.base import PixelDefense, Status
from robustclip.seeds import row_uniform
from robustclip.types import Pixels, Seeds


class ResizePad(PixelDefense):
    """Shrink to round(s * S) pixels, s ~ U[low, 1), bilinearly; place it anywhere in a black S x S field.

    Per row. Deviation: the original enlarges 299 pixels to at most 330 and pads to 331. The gradient is exact
    for a given draw. An attack on the mean of many draws breaks it (Athalye et al. 2018, arXiv 1802.00420:
    accuracy 0 at Linf 8/255).
    """

    kind: Literal["resize_pad"] = "resize_pad"
    low: float = Field(default=0.9, ge=0.1, le=1.0, allow_inf_nan=False)

    status: ClassVar[Status] = "broken-adaptively"
    cost: ClassVar[str] = "1 image pass"
    strength: ClassVar[str] = "low"

    @property
    def randomized(self) -> bool:
        return self.low < 1.0

    def __call__(self, inputs: Pixels, seeds: Seeds) -> Pixels:
        draws = row_uniform(seeds, (3,), like=inputs).to(inputs.dtype)
        size = inputs.shape[-1]
        shrunk = ((self.low + (1 - self.low) * draws[:, 0]) * size).round()
        offsets = (draws[:, 1:] * (size - shrunk[:, None] + 1)).floor()  # [B, 2]: left, top
        return shrink_into_field(inputs, shrunk, offsets)


def shrink_into_field(pixels: Pixels, shrunk: Tensor, offsets: Tensor) -> Pixels:
    """Row i resized to shrunk[i] pixels a side, at offsets[i] = (left, top) in black.

    shrunk [B] and offsets [B, 2] are whole numbers. One sampling serves all rows: output pixel u reads input
    position (u - offset + 1/2) * S / shrunk - 1/2, in grid_sample's coordinates of [-1, 1].
    """
    size = pixels.shape[-1]
    scale = size / shrunk
    shift = scale[:, None] - 1 - 2 * offsets / shrunk[:, None]
    zero = torch.zeros_like(scale)
    rows = [torch.stack([scale, zero, shift[:, 0]], dim=1), torch.stack([zero, scale, shift[:, 1]], dim=1)]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False).clamp(
        0.0, 1.0
    )
