"""The attack of hardening: where it starts, where it may go."""

import pytest
import torch
from torch import Tensor

from training.foundry.hardening.attack import Strength


def test_it_climbs_within_ball_and_box() -> None:
    generator = torch.Generator().manual_seed(0)
    pixels, noise = (
        torch.rand(4, 3, 8, 8, generator=generator),
        2 * torch.rand(4, 3, 8, 8, generator=generator) - 1,
    )
    slope = torch.randn(3, 8, 8, generator=generator)

    def loss(inputs: Tensor) -> Tensor:
        return (inputs * slope).sum(dim=(1, 2, 3))

    attacked = Strength.of(4 / 255, 2).attack(loss, pixels, noise)
    best = (pixels + 4 / 255 * slope.sign()).clamp(0, 1)
    torch.testing.assert_close(
        attacked, best, atol=1e-6, rtol=0
    )  # two steps of a radius each cross the ball from any start
    assert not attacked.requires_grad


def test_it_starts_where_the_noise_says() -> None:
    pixels, noise = (
        torch.full((2, 3, 4, 4), 0.5),
        torch.tensor([-1.0, 0.5])[:, None, None, None].expand(2, 3, 4, 4),
    )
    found = Strength(0.1, 1, 1e-9).attack(lambda inputs: inputs.sum(dim=(1, 2, 3)), pixels, noise)
    assert found.mean(dim=(1, 2, 3)).tolist() == pytest.approx([0.4, 0.55], abs=1e-6)


def test_steps_share_two_and_a_half_radii_and_none_is_longer_than_the_radius() -> None:
    assert Strength.of(4 / 255, 10).step == pytest.approx(1 / 255)
    assert Strength.of(2 / 255, 2).step == 2 / 255
