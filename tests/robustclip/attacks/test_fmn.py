import pytest
import torch
from toys import gratings, linear, smallest_radius, trained_conv

from robustclip.attacks.fmn import FMN
from robustclip.scores.kinds import label_score
from robustclip.seeds import draw_seeds
from robustclip.threat import L2, Linf

PIXELS, TARGETS = gratings(16, seed=9)
SEEDS = draw_seeds(9, 16)


@pytest.mark.parametrize(
    ("labels", "slack"), [(2, 1.05), (10, 1.5)]
)  # among many labels it may settle for another than the nearest
@pytest.mark.parametrize("kind", ["linf", "l2"])
def test_the_nearest_point_is_close_to_the_exact_boundary_and_never_before_it(
    labels: int, slack: float, kind: str
) -> None:
    toy = linear(labels)
    pixels = 0.25 + 0.5 * torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(labels))
    targets = toy(pixels, SEEDS).argmax(dim=1)
    exact = torch.tensor(
        [
            smallest_radius(toy, picture, int(target), kind)
            for picture, target in zip(pixels, targets, strict=True)
        ]
    )
    ball = Linf(radius=1) if kind == "linf" else L2(radius=7)
    attacked = FMN(ball=ball, steps=120, step=0.3)(label_score("margin", toy, targets), pixels, SEEDS[:6])
    found = ball.distance(attacked.pixels, pixels)
    assert (attacked.margin > 0).all()
    assert (found >= exact * (1 - 1e-5)).all()
    assert (found <= slack * exact).all()


def test_the_search_goes_on_behind_a_success_and_stays_in_its_ball() -> None:
    score = label_score("margin", trained_conv(), TARGETS)
    near, far = (FMN(ball=Linf(radius=radius), steps=30)(score, PIXELS, SEEDS) for radius in (3 / 255, 1))
    assert (Linf(radius=1).distance(near.pixels, PIXELS) <= 3 / 255 + 1e-6).all()
    assert (far.margin > 0).all()
    assert far.cost.forward == 31 * 16
    later = (far.trace_margin > 0).long().cumsum(dim=0).argmax(dim=0)
    assert (later > far.first_success).all()


def test_a_picture_that_is_wrong_untouched_is_its_own_nearest_point() -> None:
    attacked = FMN(ball=Linf(radius=1), steps=5)(
        label_score("margin", trained_conv(), (TARGETS + 1) % 4), PIXELS, SEEDS
    )
    assert torch.equal(attacked.pixels, PIXELS)
    assert attacked.cost.forward == 16
