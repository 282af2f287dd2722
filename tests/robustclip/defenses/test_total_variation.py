import pytest
import torch
from skimage.restoration import denoise_tv_chambolle
from torch import Tensor
from toys import gratings

from robustclip.defenses.total_variation import TotalVariation
from robustclip.seeds import draw_seeds

PIXELS, _ = gratings(4, seed=82)
SEEDS = draw_seeds(82, 4)


def objective(planes: Tensor, pixels: Tensor, weight: float) -> Tensor:
    down, across = planes.diff(dim=-2)[..., :, :-1], planes.diff(dim=-1)[..., :-1, :]
    edges = planes.diff(dim=-2)[..., :, -1].abs().sum() + planes.diff(dim=-1)[..., -1, :].abs().sum()
    return (planes - pixels).square().sum() / 2 + weight * ((down**2 + across**2).sqrt().sum() + edges)


@pytest.mark.parametrize("weight", [0.02, 0.1])
def test_more_iterations_come_closer_to_the_minimum(weight: float) -> None:
    found = [
        float(objective(TotalVariation(weight=weight, iterations=count)(PIXELS, SEEDS), PIXELS, weight))
        for count in (1, 3, 10, 30, 100, 200)
    ]
    assert found == sorted(found, reverse=True)
    assert found[-2] - found[-1] < 0.01 * (found[0] - found[-1])


@pytest.mark.parametrize("weight", [0.01, 0.02])
def test_where_it_goes_is_what_scikit_image_finds(weight: float) -> None:
    ours = TotalVariation(weight=weight, iterations=200)(PIXELS.double(), SEEDS)
    for row in range(2):
        for channel in range(3):
            theirs = denoise_tv_chambolle(
                PIXELS[row, channel].double().numpy(), weight=weight, eps=1e-9, max_num_iter=2000
            )
            assert (ours[row, channel] - torch.from_numpy(theirs)).abs().mean() < 1e-3


def test_no_change_of_the_picture_grows() -> None:
    """The minimiser is a proximal map: what the attacker adds is never longer behind it than before."""
    defense = TotalVariation(iterations=200)
    change = 8 / 255 * torch.randn(PIXELS.shape, generator=torch.Generator().manual_seed(0)).sign()
    moved = defense((PIXELS + change).clamp(0, 1), SEEDS) - defense(PIXELS, SEEDS)
    assert (moved.flatten(1).norm(dim=1) < 0.5 * change.flatten(1).norm(dim=1)).all()


def test_a_flat_picture_stays_as_it_is() -> None:
    flat = torch.full((1, 3, 9, 7), 0.3)
    assert torch.allclose(TotalVariation(weight=1.0)(flat, SEEDS[:1]), flat, atol=1e-6)
