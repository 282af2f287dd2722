import torch

from robustclip.seeds import draw_seeds
from robustclip.types import Pixels
from training.data.views import random_views


def pixels() -> Pixels:
    return torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_views_keep_shape_and_range_and_differ() -> None:
    views = random_views(pixels(), draw_seeds(0, 6))
    assert views.shape == pixels().shape
    assert 0 <= float(views.min()) <= float(views.max()) <= 1
    assert bool((views != pixels()).flatten(1).any(dim=1).all())


def test_a_view_depends_on_its_row_and_seed_alone() -> None:
    seeds = draw_seeds(0, 6)
    torch.testing.assert_close(random_views(pixels()[2:4], seeds[2:4]), random_views(pixels(), seeds)[2:4])
    assert not torch.equal(random_views(pixels(), draw_seeds(1, 6)), random_views(pixels(), seeds))


def test_some_views_are_mirrored() -> None:
    ramp = torch.linspace(0, 1, 32).expand(64, 3, 32, 32)
    rising = random_views(ramp, draw_seeds(0, 64))[:, 0, 16]
    assert 16 < int((rising[:, -1] > rising[:, 0]).sum()) < 48
