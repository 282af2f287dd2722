import math

import pytest
import torch
from scipy.ndimage import gaussian_filter
from toys import gratings

from robustclip.defenses.low_pass import LowPass
from robustclip.seeds import draw_seeds

PIXELS, _ = gratings(4, seed=84)
SEEDS = draw_seeds(84, 4)


@pytest.mark.parametrize("cutoff", [0.05, 0.18, 0.5])
@pytest.mark.parametrize("swings", [0, 1, 8, 31])
def test_a_wave_keeps_the_part_of_its_height_that_the_formula_says(cutoff: float, swings: int) -> None:
    wave = torch.cos(torch.pi * (torch.arange(32) + 0.5) * swings / 32)
    pixels = (0.5 + 0.2 * wave.expand(1, 3, 20, 32)).contiguous()
    kept = math.exp(-((swings / 64 / cutoff) ** 2) / 2)
    assert torch.allclose(
        LowPass(cutoff=cutoff)(pixels, SEEDS[:1]), 0.5 + kept * 0.2 * wave.expand(1, 3, 20, 32), atol=1e-5
    )


@pytest.mark.parametrize("cutoff", [0.05, 0.1, 0.15])
def test_it_is_a_blur_of_a_known_width(cutoff: float) -> None:
    blurred = gaussian_filter(
        PIXELS[0, 0].double().numpy(), 1 / (2 * math.pi * cutoff), mode="reflect", truncate=8
    )
    assert torch.allclose(
        LowPass(cutoff=cutoff)(PIXELS.double(), SEEDS)[0, 0], torch.from_numpy(blurred), atol=1e-4
    )


@pytest.mark.parametrize("norm", [1, 2, math.inf])
@pytest.mark.parametrize("cutoff", [0.05, 0.18])
def test_no_change_of_the_picture_grows_in_any_norm(cutoff: float, norm: float) -> None:
    defense, generator = LowPass(cutoff=cutoff), torch.Generator().manual_seed(0)
    for change in (
        torch.randn(PIXELS.shape, generator=generator),
        torch.ones_like(PIXELS),
        (PIXELS - 0.5).sign(),
    ):
        moved = defense((PIXELS + 8 / 255 * change).clamp(0, 1), SEEDS) - defense(PIXELS, SEEDS)
        before = ((PIXELS + 8 / 255 * change).clamp(0, 1) - PIXELS).flatten(1).norm(p=norm, dim=1)
        assert (moved.flatten(1).norm(p=norm, dim=1) <= before * 1.005).all()
