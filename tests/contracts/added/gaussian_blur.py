"""A Gaussian blur, borders mirrored."""

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch.nn import functional as F

from robustclip.defenses.base import PixelDefense, Status
from robustclip.types import Pixels, Seeds


class GaussianBlur(PixelDefense):
    """Each value becomes a mean of its neighbors, weighted by a Gaussian of `sigma` pixels."""

    kind: Literal["gaussian_blur"] = "gaussian_blur"
    sigma: float = Field(default=1.0, ge=0.1, le=3.0)

    status: ClassVar[Status] = "experimental"
    cost: ClassVar[str] = "1 image pass"
    strength: ClassVar[str] = "sigma"

    def __call__(self, inputs: Pixels, seeds: Seeds) -> Pixels:
        reach = math.ceil(3 * self.sigma)
        weights = torch.exp(-((torch.arange(-reach, reach + 1) / self.sigma) ** 2) / 2).to(inputs)
        kernel = torch.outer(weights, weights) / weights.sum() ** 2
        padded = F.pad(inputs, (reach,) * 4, mode="reflect")
        return F.conv2d(padded, kernel.expand(3, 1, -1, -1), groups=3).clamp(0.0, 1.0)
