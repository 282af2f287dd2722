"""Noise on pictures and its removal: DDPM's schedule in continuous time, DDIM, and denoising in one step.

The variance-preserving process of Song et al. 2021 (arXiv 2011.13456, equations 11 and 33): beta grows from
0.1 to 20 over times 0 to 1, the limit of DDPM's 1000 steps from 1e-4 to 0.02. Pictures are y = 2 x - 1 here,
pixels x in [0, 1] outside; `sigma` is noise in the units of pixels.
"""

import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from robustclip.purifiers.networks import Denoiser
from robustclip.types import Pixels

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
