"""Readings of networks whose worth is known."""

import pytest
import torch

from robustclip.models.clip import Clip
from robustclip.purifiers import build_network
from robustclip.purifiers.networks import DenoiserShape, SuperResolverShape
from training.foundry.corpus import Corpus
from training.foundry.purifying.exam import Reading, examine, held_out, shortcomings


def test_untrained_networks_are_no_better_than_nothing_and_are_said_to_be(
    tiny: Clip, drawings: Corpus
) -> None:
    exam = held_out(drawings, tiny, 8, seed=0)
    enlarging = examine(build_network(SuperResolverShape(width=8, blocks=0)), exam)
    assert enlarging["network"] == enlarging["bicubic"]
    assert enlarging["untouched"].psnr is None
    silent = examine(build_network(DenoiserShape(widths=(8,))), exam)
    assert silent["denoised_0.25"] == silent["noisy_0.25"]
    assert silent["noisy_0.1"].psnr == pytest.approx(20, abs=1)  # the clamp takes a little of the noise away
    assert len(shortcomings(enlarging)) == 2
    assert len(shortcomings(silent)) == 4


def test_pictures_of_the_exam_were_held_out_and_are_the_same_for_every_look(
    tiny: Clip, drawings: Corpus
) -> None:
    first, second = (held_out(drawings, tiny, 8, seed=3) for _ in range(2))
    looked_at = first.pixels(torch.arange(8))
    assert torch.equal(looked_at, second.pixels(torch.arange(8)))
    allowed = drawings.pixels(drawings.validation.nonzero().flatten())
    assert all(bool((picture == allowed).flatten(1).all(dim=1).any()) for picture in looked_at)


def test_a_network_that_is_better_has_no_shortcomings() -> None:
    readings = {
        "untouched": Reading(None, 60.0),
        "noisy_0.1": Reading(20.0, 30.0),
        "denoised_0.1": Reading(28.0, 50.0),
    }
    assert shortcomings(readings) == []
    (complaint,) = shortcomings(readings | {"denoised_0.1": Reading(28.0, 30.0)})
    assert complaint == "of denoised_0.1 pictures 30.0 % are named rightly, of noisy_0.1 ones 30.0 %"
