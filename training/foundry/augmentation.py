"""The random changes of training pictures in pretraining and hardening."""

import torch
from torch import Tensor
from torch.nn import functional as F

from robustclip.types import Pixels


def augment(pixels: Pixels, generator: torch.Generator) -> Pixels:
    """Random crop or shrinking, flip, blur, sharpness, grey, contrast, brightness and tint; [B, 3, S, S].

    The pictures are enlarged from 64 pixels or less, so they lack fine detail. Shrinking (with mirrored
    margins) and sharpening make them look like photographs of several hundred pixels.
    """
    batch, _, size, _ = pixels.shape

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(batch, generator=generator)

    shrunk, ratio = draw(0, 1) < 0.25, draw(-0.2, 0.2).exp()
    area = torch.where(shrunk, draw(1.0, 2.0), draw(0.4, 1.0))
    limit = torch.where(shrunk, 1.6, 1.0)
    wide, tall = (
        torch.minimum(area.sqrt() * ratio.sqrt(), limit),
        torch.minimum(area.sqrt() / ratio.sqrt(), limit),
    )
    mirror = torch.where(draw(0, 1) < 0.5, -1.0, 1.0)
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = wide * mirror, tall
    theta[:, 0, 2], theta[:, 1, 2] = draw(-1, 1) * (1 - wide).abs(), draw(-1, 1) * (1 - tall).abs()
    grid = F.affine_grid(theta, [batch, 3, size, size], align_corners=False)
    out = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    coarse = F.interpolate(
        F.interpolate(out, scale_factor=0.4, mode="area"),
        size=(size, size),
        mode="bilinear",
        align_corners=False,
    )
    out = torch.where((draw(0, 1) < 0.2)[:, None, None, None], coarse, out)
    sharpness = torch.where(draw(0, 1) < 0.5, draw(-0.7, 1.5), 0.0)[:, None, None, None]
    out = out + sharpness * (out - F.avg_pool2d(out, 3, stride=1, padding=1, count_include_pad=False))
    grey = out.mean(dim=1, keepdim=True).expand_as(out)
    out = torch.where((draw(0, 1) < 0.1)[:, None, None, None], grey, out)
    middle = out.mean(dim=(1, 2, 3), keepdim=True)
    contrast, brightness = draw(0.7, 1.3)[:, None, None, None], draw(-0.12, 0.12)[:, None, None, None]
    tint = 0.06 * torch.randn(batch, 3, 1, 1, generator=generator)
    return ((out - middle) * contrast + middle + brightness + tint).clamp(0, 1)


def blend(
    pixels: Pixels, generator: torch.Generator, *, mixed: float, noisy: float
) -> tuple[Pixels, torch.Tensor]:
    """A share `mixed` becomes a mean of two pictures, a share `noisy` gets noise of up to 0.1.

    Also [B] bool: which are means of two, so that their label is none any more.
    """
    batch = len(pixels)
    chosen = torch.rand(batch, generator=generator) < mixed
    other = pixels[torch.randperm(batch, generator=generator)]
    part = torch.where(chosen, 0.3 + 0.4 * torch.rand(batch, generator=generator), 1.0)[:, None, None, None]
    spread = torch.where(torch.rand(batch, generator=generator) < noisy, 0.1, 0.0)
    spread = (spread * torch.rand(batch, generator=generator))[:, None, None, None]
    noise = torch.randn(pixels.shape, generator=generator)
    return (part * pixels + (1 - part) * other + spread * noise).clamp(0, 1), chosen
