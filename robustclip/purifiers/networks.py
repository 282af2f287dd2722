"""The two networks, fully convolutional, and the diffusion that the denoiser serves. Both networks begin with
space to depth, which divides the cost by four.

The denoiser predicts noise: a U-Net of blocks as in DDPM (Ho et al. 2020, arXiv 2006.11239, appendix B), with
scale and shift from the noise level. Deviations: no attention, since it is trained on 64 pixels and runs at
96 and 224; the level is the logarithm of noise over signal, which is continuous and independent of any
schedule.

Diffusion is DDPM's schedule in continuous time, the variance-preserving process of Song et al. 2021 (arXiv
2011.13456, equations 11 and 33): beta grows from 0.1 to 20 over times 0 to 1, the limit of DDPM's 1000 steps
from 1e-4 to 0.02. Pictures are y = 2 x - 1 there, pixels x in [0, 1] outside; `sigma` is noise in the units
of pixels.

The super-resolver computes what to add to bicubic enlargement by two: residual blocks without normalisation,
and a pixel shuffle at the end, as in EDSR (Lim et al. 2017, arXiv 1707.02921). Deviation: the network adds to
a bicubic enlargement instead of replacing it.
"""

import math
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from robustclip.types import Pixels

SCALE = 2
_FOLD = 2


class SuperResolverShape(BaseModel, frozen=True, extra="forbid"):
    """What decides the tensors: `width` channels in each of `blocks` residual blocks."""

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


_WAVES = 16  # frequencies that encode the noise level
_GROUP = 8  # channels normalised together


class DenoiserShape(BaseModel, frozen=True, extra="forbid"):
    """What decides the tensors, and the largest time (0 clean, 1 noise only) used in training.

    widths    channels at each scale, finest first, multiples of 8; each scale halves the size
    middle    blocks at the coarsest scale, beside one on the way down and one on the way up
    max_time  defenses use no later times
    """

    kind: Literal["denoiser"] = "denoiser"
    widths: tuple[Annotated[int, Field(ge=_GROUP, le=1024, multiple_of=_GROUP)], ...] = Field(
        default=(48, 96, 192), min_length=1, max_length=6
    )
    middle: int = Field(default=1, ge=0, le=16)
    fold: int = Field(default=2, ge=1, le=8)
    max_time: float = Field(default=0.3, gt=0, le=1)

    @property
    def multiple(self) -> int:
        """Sides of pictures are padded to multiples of this."""
        return self.fold * 2 ** (len(self.widths) - 1)


class Denoiser(nn.Module):
    """(x [B, 3, H, W] = signal * y + noise * e, log(noise / signal) [B]) -> the predicted e.

    y is a picture in [-1, 1]. An untrained network predicts 0.
    """

    def __init__(self, shape: DenoiserShape) -> None:
        super().__init__()
        self.shape = shape
        widths, levels = shape.widths, 4 * shape.widths[0]
        self.level = nn.Sequential(
            nn.Linear(2 * _WAVES, levels), nn.SiLU(), nn.Linear(levels, levels), nn.SiLU()
        )
        self.entry = nn.Conv2d(3 * shape.fold**2, widths[0], 3, padding=1)
        self.down = nn.ModuleList([_Block(width, width, levels) for width in widths])
        self.coarser = nn.ModuleList(
            [nn.Conv2d(fine, coarse, 3, stride=2, padding=1) for fine, coarse in pairwise(widths)]
        )
        self.middle = nn.ModuleList([_Block(widths[-1], widths[-1], levels) for _ in range(shape.middle)])
        self.up = nn.ModuleList([_Block(2 * width, width, levels) for width in widths])
        self.finer = nn.ModuleList([nn.Conv2d(coarse, fine, 1) for fine, coarse in pairwise(widths)])
        self.norm = nn.GroupNorm(widths[0] // _GROUP, widths[0])
        self.exit = nn.Conv2d(widths[0], 3 * shape.fold**2, 3, padding=1)
        for parameter in self.exit.parameters():
            nn.init.zeros_(parameter)

    def forward(self, noisy: Tensor, log_ratio: Tensor) -> Tensor:
        height, width = noisy.shape[-2:]
        multiple, fold = self.shape.multiple, self.shape.fold
        padded = F.pad(noisy, (0, -width % multiple, 0, -height % multiple), mode="replicate")
        level = self.level(_waves(log_ratio))
        features = self.entry(F.pixel_unshuffle(padded, fold).contiguous(memory_format=torch.channels_last))
        skips: list[Tensor] = []
        for index, block in enumerate(self.down):
            features = block(self.coarser[index - 1](features) if index else features, level)
            skips.append(features)
        for block in self.middle:
            features = block(features, level)
        for index in reversed(range(len(skips))):
            features = self.up[index](torch.cat([features, skips[index]], dim=1), level)
            if index:
                features = F.interpolate(self.finer[index - 1](features), scale_factor=2, mode="nearest")
        return F.pixel_shuffle(self.exit(F.silu(self.norm(features))), fold)[..., :height, :width]


class _Block(nn.Module):
    """Two convolutions with a shortcut; the noise level scales and shifts the features between them."""

    def __init__(self, channels: int, width: int, levels: int) -> None:
        super().__init__()
        self.norm_first = nn.GroupNorm(channels // _GROUP, channels)
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.modulation = nn.Linear(levels, 2 * width)
        self.norm_second = nn.GroupNorm(width // _GROUP, width)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.shortcut = nn.Identity() if channels == width else nn.Conv2d(channels, width, 1)
        for parameter in self.second.parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Tensor, level: Tensor) -> Tensor:
        hidden = self.first(F.silu(self.norm_first(features)))
        scale, shift = self.modulation(level)[:, :, None, None].chunk(2, dim=1)
        hidden = self.second(F.silu(self.norm_second(hidden) * (1 + scale) + shift))
        return self.shortcut(features) + hidden


def _waves(log_ratio: Tensor) -> Tensor:
    """[B, 32] sines and cosines of the noise level, from one period over all levels to many."""
    frequencies = torch.exp(
        torch.linspace(math.log(0.25), math.log(16.0), _WAVES, dtype=log_ratio.dtype, device=log_ratio.device)
    )
    angles = log_ratio[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


BETA_START, BETA_END = 0.1, 20.0


def lost(time: Tensor) -> Tensor:
    """The integral of beta up to a time: signal = exp(-lost / 2), noise^2 = 1 - signal^2."""
    return BETA_START * time + (BETA_END - BETA_START) * time.square() / 2


def parts(time: Tensor) -> tuple[Tensor, Tensor]:
    """(signal, noise) at a time: the factors of picture and Gaussian noise."""
    gone = lost(time)
    return (-gone / 2).exp(), (-torch.expm1(-gone)).sqrt()


def log_ratio(time: Tensor) -> Tensor:
    """log(noise / signal), the second input of a Denoiser."""
    return torch.expm1(lost(time)).log() / 2


def time_of(sigma: float) -> float:
    """The time at which noise over signal is 2 sigma: pictures in [-1, 1] are twice as wide as pixels."""
    gone, slope = math.log1p((2 * sigma) ** 2), BETA_END - BETA_START
    return (math.sqrt(BETA_START**2 + 2 * slope * gone) - BETA_START) / slope


def sigma_of(time: float) -> float:
    """The noise in pixel units at a time; the inverse of `time_of`."""
    return math.sqrt(math.expm1(float(lost(torch.tensor(time, dtype=torch.float64))))) / 2


def one_shot(network: Denoiser, noisy: Pixels, sigma: float) -> Tensor:
    """The picture behind pixels [B, 3, H, W] with noise of deviation `sigma`; neither is clamped."""
    time = _times(time_of(sigma), noisy)
    signal = _wide(parts(time)[0])
    return noisy - sigma * network(signal * (2 * noisy - 1), log_ratio(time))


def diffused(pixels: Pixels, noise: Tensor, time: float | Tensor) -> Tensor:
    """Pictures with noise: signal * y + noise * e at one time, or at a time [B] for each."""
    signal, share = (_wide(part) for part in parts(_times(time, pixels)))
    return signal * (2 * pixels - 1) + share * noise


def restored(network: Denoiser, noisy: Tensor, time: float, *, steps: int) -> Tensor:
    """Pixels from pictures at a time, by equal DDIM steps (Song et al. 2021, arXiv 2010.02502, eta 0).

    Not clamped. A gradient goes through every step, each recomputed in the backward pass.
    """
    for step in range(steps):
        start, end = (time * (steps - count) / steps for count in (step, step + 1))
        if torch.is_grad_enabled() and noisy.requires_grad:
            noisy = checkpoint(  # pyright: ignore[reportAssignmentType]
                _step, network, noisy, start, end, use_reentrant=False, preserve_rng_state=False
            )
        else:
            noisy = _step(network, noisy, start, end)
    return (noisy + 1) / 2


def _step(network: Denoiser, noisy: Tensor, start: float, end: float) -> Tensor:
    before, after = _times(start, noisy), _times(end, noisy)
    (signal, noise), (signal_after, noise_after) = (
        [_wide(part) for part in parts(time)] for time in (before, after)
    )
    predicted = network(noisy, log_ratio(before))
    return signal_after * (noisy - noise * predicted) / signal + noise_after * predicted


def _times(time: float | Tensor, like: Tensor) -> Tensor:
    return time if isinstance(time, Tensor) else like.new_full((len(like),), time)


def _wide(rows: Tensor) -> Tensor:
    return rows[:, None, None, None]
