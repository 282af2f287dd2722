"""Total variation denoising (Rudin, Osher & Fatemi 1992), a defense in Guo et al. 2018 (arXiv 1711.00117)."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from robustclip.defenses.base import PixelDefense, Status
from robustclip.types import Pixels, Seeds

_STEP = 1 / 8  # the largest for which Chambolle proves convergence


class TotalVariation(PixelDefense):
    """Approach the u that minimises |u - x|^2 / 2 + weight * TV(u), by Chambolle 2004, section 3.

    Per channel. The iteration is unrolled: the gradient passes through every step and is exact, with the
    memory of one step at a time. Deviation from Guo et al.: no pixels are dropped at random, so the defense
    is deterministic.
    """

    kind: Literal["total_variation"] = "total_variation"
    weight: float = Field(default=0.05, ge=0.0, le=1.0, allow_inf_nan=False)
    iterations: int = Field(default=30, ge=1, le=200)

    status: ClassVar[Status] = "broken-adaptively"
    cost: ClassVar[str] = "1 image pass and 30 passes over the picture's values"
    strength: ClassVar[str] = "weight"

    def __call__(self, inputs: Pixels, seeds: Seeds) -> Pixels:
        flow = inputs.new_zeros(2, *inputs.shape)
        recorded = torch.is_grad_enabled() and inputs.requires_grad
        for _ in range(self.iterations):
            flow = (
                checkpoint(_ascend, flow, inputs, self.weight, use_reentrant=False)
                if recorded
                else _ascend(flow, inputs, self.weight)
            )
        return (inputs - _divergence(flow)).clamp(0.0, 1.0)


def _ascend(flow: Tensor, pixels: Pixels, weight: float) -> Tensor:
    """One iteration on the dual field times the weight [2, B, 3, H, W]; so weight 0 needs no division."""
    slope = _gradient(_divergence(flow) - pixels)
    length = (slope.square().sum(dim=0) + 1e-14).sqrt()  # sqrt has no finite slope at 0
    return weight * (flow + _STEP * slope) / (weight + _STEP * length)


def _gradient(planes: Tensor) -> Tensor:
    """[2, ...] forward differences down and across; 0 at the far border."""
    return torch.stack([F.pad(planes.diff(dim=-2), (0, 0, 0, 1)), F.pad(planes.diff(dim=-1), (0, 1))])


def _divergence(flow: Tensor) -> Tensor:
    """Minus the transpose of `_gradient`, for fields that are 0 at the far border, as its results are."""
    return F.pad(flow[0], (0, 0, 1, 0)).diff(dim=-2) + F.pad(flow[1], (1, 0)).diff(dim=-1)
