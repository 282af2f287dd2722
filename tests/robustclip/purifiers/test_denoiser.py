"""The noise predictor: any size, rows apart, the noise level heard."""

import pytest
import torch

from robustclip.purifiers import open_denoiser
from robustclip.purifiers.networks import Denoiser, DenoiserShape

NOISY = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LEVELS = torch.tensor([-2.0, -1.0, 0.0])


def test_untrained_it_says_nothing() -> None:
    assert torch.equal(Denoiser(DenoiserShape(widths=(8, 16)))(NOISY, LEVELS), torch.zeros_like(NOISY))


@pytest.mark.parametrize("widths", [(8,), (8, 16), (8, 8, 24)])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (7, 30)])
def test_noise_of_any_size_has_a_prediction_of_that_size(
    widths: tuple[int, ...], height: int, width: int
) -> None:
    noisy = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))
    assert Denoiser(DenoiserShape(widths=widths))(noisy, LEVELS[:2]).shape == noisy.shape


def test_each_row_hears_its_own_level() -> None:
    network = open_denoiser("tiny", like=NOISY, time=0.1)
    together = network(NOISY, LEVELS)
    for row in range(3):
        assert torch.allclose(
            network(NOISY[row : row + 1], LEVELS[row : row + 1]), together[row : row + 1], atol=1e-6
        )
    assert not torch.allclose(network(NOISY, LEVELS + 0.5), together, atol=1e-4)
