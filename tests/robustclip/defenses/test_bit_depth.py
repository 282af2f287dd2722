import pytest
import torch
from toys import gratings

from robustclip.defenses.bit_depth import BitDepth
from robustclip.seeds import draw_seeds

PIXELS, _ = gratings(4, seed=51)
SEEDS = draw_seeds(51, 4)


@pytest.mark.parametrize("bits", range(1, 9))
def test_there_are_at_most_two_to_the_bits_levels_and_each_is_the_nearest(bits: int) -> None:
    ramp = torch.linspace(0, 1, 3 * 40 * 40).reshape(1, 3, 40, 40)
    out = BitDepth(bits=bits)(ramp, SEEDS[:1])
    assert len(out.unique()) == 2**bits
    assert (out - ramp).abs().max() <= 0.5 / (2**bits - 1) + 1e-6


def test_eight_bits_change_no_uint8_picture() -> None:
    assert torch.allclose(BitDepth(bits=8)(PIXELS, SEEDS), PIXELS, atol=1e-7)


def test_the_attacker_sees_the_identity() -> None:
    pixels = PIXELS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(BitDepth()(pixels, SEEDS).sum(), pixels)
    assert torch.equal(gradient, torch.ones_like(gradient))
