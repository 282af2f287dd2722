import torch
from toys import gratings, trained_conv

from robustclip.attacks.noise import Noise
from robustclip.scores.kinds import label_score
from robustclip.seeds import draw_seeds
from robustclip.threat import Linf
from robustclip.types import Cost

PIXELS, TARGETS = gratings(16, seed=9)
SEEDS = draw_seeds(9, 16)


def test_every_draw_is_another_and_costs_one_pass() -> None:
    attacked = Noise(ball=Linf(radius=2 / 255), draws=5)(
        label_score("margin", trained_conv(), TARGETS), PIXELS, SEEDS
    )
    assert attacked.cost == Cost(forward=6 * 16)
    assert all(len(draws.unique()) == 6 for draws in attacked.trace_margin.T)
    assert torch.equal(attacked.margin, attacked.trace_margin.amax(dim=0))
