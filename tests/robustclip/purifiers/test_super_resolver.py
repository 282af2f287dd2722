"""The x2 network: sizes, and that it starts from bicubic enlargement."""

import pytest
import torch

from robustclip.purifiers import open_super_resolver
from robustclip.purifiers.networks import SuperResolver, SuperResolverShape, enlarged, shrunk

PIXELS = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_untrained_it_is_bicubic_enlargement() -> None:
    network = SuperResolver(SuperResolverShape(width=8, blocks=2))
    assert torch.equal(network(PIXELS), enlarged(PIXELS))


@pytest.mark.parametrize(("height", "width"), [(16, 16), (15, 9), (1, 2), (96, 96)])
def test_any_picture_comes_back_at_twice_its_size(height: int, width: int) -> None:
    pixels = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1))
    assert open_super_resolver("tiny", like=pixels)(pixels).shape == (1, 3, 2 * height, 2 * width)


def test_a_flat_picture_keeps_its_place_when_enlarged_and_shrunk() -> None:
    assert torch.allclose(
        shrunk(enlarged(PIXELS.mean(dim=(2, 3), keepdim=True).expand_as(PIXELS)), 16, 16),
        PIXELS.mean(dim=(2, 3), keepdim=True),
    )
