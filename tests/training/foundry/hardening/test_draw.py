"""What a step of hardening draws."""

from functools import partial

import pytest
import torch

from training.foundry.blocks import draw_blocks
from training.foundry.corpus import Corpus
from training.foundry.hardening.run import draw
from training.foundry.recipe import BLOCK


@pytest.mark.parametrize("augmented", [False, True])
def test_a_block_does_not_depend_on_who_draws_it_and_beside_what(toys: Corpus, augmented: bool) -> None:
    drawing = partial(draw, toys, augmented=augmented)
    together = draw_blocks(drawing, toys, [0, 1, 2], seed=3, stream="step-7")
    alone = draw_blocks(drawing, toys, [2], seed=3, stream="step-7")
    for all_three, last in zip(together, alone, strict=True):
        assert torch.equal(all_three[2 * BLOCK :], last)
    other = draw_blocks(drawing, toys, [2], seed=3, stream="step-8")
    assert not torch.equal(other.noise, alone.noise)
    assert alone.noise.abs().max() <= 1
    assert alone.noise.min() < -0.9
