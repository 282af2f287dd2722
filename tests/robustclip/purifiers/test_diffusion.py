"""The schedule against DDPM's own table, and the ways back against a network that knows the answer."""

import pytest
import torch
from torch import Tensor, nn

from robustclip.purifiers import open_denoiser
from robustclip.purifiers.networks import (
    Denoiser,
    diffused,
    log_ratio,
    one_shot,
    parts,
    restored,
    sigma_of,
    time_of,
)

GENERATOR = torch.Generator().manual_seed(0)
PIXELS, NOISE = torch.rand(2, 3, 8, 8, generator=GENERATOR), torch.randn(2, 3, 8, 8, generator=GENERATOR)


class Oracle(nn.Module):
    """Predicts the noise of pictures that it knows."""

    def forward(self, noisy: Tensor, levels: Tensor) -> Tensor:
        ratio = levels.exp().square()[:, None, None, None]
        signal, noise = (1 / (1 + ratio)).sqrt(), (ratio / (1 + ratio)).sqrt()
        return (noisy - signal * (2 * PIXELS - 1)) / noise


def oracle() -> Denoiser:
    return Oracle()  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("step", [1, 50, 100, 300, 1000])
def test_the_schedule_is_ddpm_s_linear_one(step: int) -> None:
    kept = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)[step - 1]
    signal, noise = parts(torch.tensor(step / 1000, dtype=torch.float64))
    assert float(signal.square().log()) == pytest.approx(float(kept.log()), rel=0.02, abs=1e-4)
    assert float(signal.square() + noise.square()) == pytest.approx(1)


@pytest.mark.parametrize("sigma", [0.004, 0.1, 0.25, 0.5, 2.0])
def test_time_and_noise_in_pixel_units_say_the_same(sigma: float) -> None:
    time = torch.tensor(time_of(sigma), dtype=torch.float64)
    assert sigma_of(float(time)) == pytest.approx(sigma)
    assert float(log_ratio(time).exp()) == pytest.approx(2 * sigma)  # pictures in [-1, 1] are twice as wide


@pytest.mark.parametrize("steps", [1, 3])
def test_who_knows_the_noise_gets_the_picture_back(steps: int) -> None:
    assert torch.allclose(
        restored(oracle(), diffused(PIXELS, NOISE, 0.2), 0.2, steps=steps), PIXELS, atol=1e-4
    )


def test_one_shot_takes_away_noise_in_pixel_units() -> None:
    assert torch.allclose(one_shot(oracle(), PIXELS + 0.25 * NOISE, 0.25), PIXELS, atol=1e-5)


def test_the_gradient_through_checkpoints_is_the_plain_one_and_that_of_differences() -> None:
    pixels, noise = PIXELS.double().requires_grad_(), NOISE.double()
    network = open_denoiser("tiny", like=pixels, time=0.2)
    weights = torch.randn(PIXELS.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def value(inputs: Tensor) -> Tensor:
        return (restored(network, diffused(inputs, noise, 0.2), 0.2, steps=2) * weights).sum()

    (gradient,) = torch.autograd.grad(value(pixels), pixels)
    plain = torch.func.grad(lambda inputs: (_unrolled(network, inputs, noise) * weights).sum())(
        pixels.detach()
    )
    assert torch.allclose(gradient, plain, atol=1e-10)
    direction = torch.randn(PIXELS.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with torch.no_grad():
        measured = (value(pixels + 1e-6 * direction) - value(pixels - 1e-6 * direction)) / 2e-6
    assert float((gradient * direction).sum()) == pytest.approx(float(measured), rel=1e-5)


def _unrolled(network: Denoiser, pixels: Tensor, noise: Tensor) -> Tensor:
    """Two DDIM steps as the paper writes them."""
    x = diffused(pixels, noise, 0.2)
    for start, end in ((0.2, 0.1), (0.1, 0.0)):
        times = [torch.full((len(x),), time, dtype=x.dtype) for time in (start, end)]
        (signal, share), (signal_after, share_after) = ([part[0] for part in parts(time)] for time in times)
        predicted = network(x, log_ratio(times[0]))
        x = signal_after * (x - share * predicted) / signal + share_after * predicted
    return (x + 1) / 2
