import pytest
import torch
from scipy.ndimage import median_filter
from toys import Purified, gratings, trained_conv

from robustclip.attacks.pgd import PGD
from robustclip.defenses.median import Median
from robustclip.scores.kinds import label_score
from robustclip.seeds import draw_seeds
from robustclip.threat import Linf

PIXELS, TARGETS = gratings(32, seed=81)
SEEDS = draw_seeds(81, 32)


@pytest.mark.parametrize("window", [1, 3, 5, 7])
def test_it_is_scipy_s_median_filter_with_mirrored_borders(window: int) -> None:
    expected = median_filter(PIXELS[:4].numpy(), size=(1, 1, window, window), mode="mirror")
    assert torch.equal(Median(window=window)(PIXELS[:4], SEEDS[:4]), torch.from_numpy(expected))


def test_a_lone_wrong_pixel_is_gone() -> None:
    pixels = torch.full((1, 3, 8, 8), 0.4)
    pixels[0, :, 3, 4] = 1.0
    assert torch.equal(Median()(pixels, SEEDS[:1]), torch.full((1, 3, 8, 8), 0.4))


def test_the_true_gradient_leaves_pixels_out_and_the_leaky_one_does_not() -> None:
    zeros: dict[str, float] = {}
    for backward in ("exact", "leaky"):
        pixels = PIXELS.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(Median(backward=backward)(pixels, SEEDS).sum(), pixels)
        zeros[backward] = float((gradient == 0).float().mean())
    assert zeros["exact"] > 0.3
    assert zeros["leaky"] == 0


def test_the_leaky_gradient_breaks_about_as_much_as_the_true_one() -> None:
    """Why it is the default: it sets no flag for zero entries, and costs the attack nothing."""
    broken: dict[str, float] = {}
    for backward in ("exact", "leaky"):
        score = label_score("margin", Purified(trained_conv(), Median(backward=backward)), TARGETS)
        broken[backward] = float(
            (PGD(ball=Linf(radius=3 / 255), steps=10, starts=("zero",))(score, PIXELS, SEEDS).margin > 0)
            .float()
            .mean()
        )
    assert broken["leaky"] > 0.3
    assert broken["leaky"] >= broken["exact"] - 0.1
