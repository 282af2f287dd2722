import pytest
import torch
from skimage import data

from robustclip.defenses.wavelet import Wavelet, denoised
from robustclip.seeds import draw_seeds

SEEDS = draw_seeds(83, 1)
PHOTOGRAPH = torch.from_numpy(data.chelsea()[60:188, 120:248].copy()).permute(2, 0, 1)[None] / 255


@pytest.mark.parametrize("levels", range(1, 6))
def test_without_noise_to_expect_the_picture_comes_back(levels: int) -> None:
    assert torch.allclose(denoised(PHOTOGRAPH, 0.0, levels), PHOTOGRAPH, atol=1e-6)


@pytest.mark.parametrize("amplitude", [0.005, 0.02, 0.1])
@pytest.mark.parametrize("across", [False, True])
def test_stripes_shrink_as_the_formula_says(amplitude: float, across: bool) -> None:
    """Stripes of one pixel live in one band, where every detail is twice their height: the threshold is known
    by hand.
    """
    sigma = 0.02
    stripes = torch.where(torch.arange(16) % 2 == 0, amplitude, -amplitude).double()
    planes = 0.5 + (stripes[None, :] if across else stripes[:, None]).expand(16, 16)
    signal = (2 * amplitude) ** 2 - sigma**2
    expected = max(amplitude - sigma**2 / signal**0.5 / 2, 0) if signal > 0 else 0
    assert torch.allclose(denoised(planes, sigma, 3), 0.5 + (planes - 0.5) / amplitude * expected, atol=1e-12)


def test_it_takes_noise_away_from_a_photograph() -> None:
    noise = 0.05 * torch.randn(PHOTOGRAPH.shape, generator=torch.Generator().manual_seed(0))
    noisy = (PHOTOGRAPH + noise).clamp(0, 1)
    before, after = (
        float((picture - PHOTOGRAPH).square().mean())
        for picture in (noisy, Wavelet(sigma=0.05)(noisy, SEEDS))
    )
    assert after < 0.65 * before


@pytest.mark.parametrize(("height", "width"), [(25, 25), (30, 17), (7, 64)])
def test_pictures_of_any_size_keep_it(height: int, width: int) -> None:
    picture = PHOTOGRAPH[..., :height, :width]
    out = Wavelet(levels=5)(picture, SEEDS)
    assert out.shape == picture.shape
    assert (out - picture).abs().mean() < 0.02
