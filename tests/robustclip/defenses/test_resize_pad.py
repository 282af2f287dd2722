import pytest
import torch
from torch.nn import functional as F
from toys import Purified, gratings, trained_conv

from robustclip.attacks.pgd import PGD
from robustclip.defenses.resize_pad import ResizePad, shrink_into_field
from robustclip.scores.kinds import label_score
from robustclip.scores.wrappers import averaged
from robustclip.seeds import draw_seeds
from robustclip.threat import Linf

PIXELS, TARGETS = gratings(32, seed=61)
SEEDS = draw_seeds(61, 32)


def test_it_equals_a_resize_and_a_pad_of_each_row() -> None:
    shrunk, offsets = (
        torch.tensor([32.0, 29.0, 30.0, 17.0]),
        torch.tensor([[0.0, 0.0], [3.0, 0.0], [1.0, 2.0], [4.0, 15.0]]),
    )
    out = shrink_into_field(PIXELS[:4], shrunk, offsets)
    for row in range(4):
        size, (left, top) = int(shrunk[row]), offsets[row].int().tolist()
        small = F.interpolate(PIXELS[row : row + 1], size=(size, size), mode="bilinear", align_corners=False)
        by_hand = F.pad(small, (left, 32 - size - left, top, 32 - size - top))
        assert torch.allclose(out[row : row + 1], by_hand, atol=1e-5)


def test_full_size_is_the_identity() -> None:
    assert torch.allclose(ResizePad(low=1)(PIXELS, SEEDS), PIXELS, atol=1e-5)


@pytest.mark.parametrize("low", [0.9, 0.5])
def test_the_picture_stays_whole_at_every_size_and_place(low: float) -> None:
    white = torch.ones(400, 3, 32, 32)
    field = ResizePad(low=low)(white, draw_seeds(62, 400))[:, 0] > 0.5
    heights, widths = field.any(dim=2).sum(dim=1), field.any(dim=1).sum(dim=1)
    assert torch.equal(heights, widths)
    assert torch.equal(field.flatten(1).sum(dim=1), heights * widths)  # one full square
    assert set(heights.tolist()) == set(range(round(low * 32), 33))
    at_edge = {"left": field[:, :, 0], "right": field[:, :, -1], "top": field[:, 0], "bottom": field[:, -1]}
    for edge in at_edge.values():
        assert 0 < edge.any(dim=1).float().mean() < 1


def test_the_gradient_is_the_true_one_for_a_given_draw() -> None:
    defense = ResizePad(low=0.6)
    pixels = PIXELS[:2].double()
    direction = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    asked = pixels.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((_in_float64(defense, asked) ** 2).sum(), asked)
    step = 1e-6
    rise = (_in_float64(defense, pixels + step * direction) ** 2).sum() - (
        _in_float64(defense, pixels - step * direction) ** 2
    ).sum()
    assert torch.isclose(rise / (2 * step), (gradient * direction).sum(), rtol=1e-4)


def _in_float64(defense: ResizePad, pixels: torch.Tensor) -> torch.Tensor:
    shrunk, offsets = (
        torch.tensor([20.0, 31.0], dtype=torch.float64),
        torch.tensor([[3.0, 7.0], [0.0, 1.0]], dtype=torch.float64),
    )
    return shrink_into_field(pixels, shrunk, offsets)


def test_twenty_draws_a_gradient_break_it() -> None:
    victim = Purified(trained_conv(), ResizePad())
    attack = PGD(ball=Linf(radius=6 / 255), steps=6, starts=("zero",), stop="never")
    attacked = attack(averaged(label_score("margin", victim, TARGETS[:16]), 20), PIXELS[:16], SEEDS[:16])
    fresh = averaged(label_score("margin", victim, TARGETS[:16]), 20)(
        attacked.pixels, draw_seeds(99, 16), grad=False
    )
    assert (fresh.margin > 0).float().mean() > 0.75
