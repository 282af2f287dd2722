"""The networks that ship, on a photograph that none of them was trained on, and what their card says of
them.
"""

from pathlib import Path

import pytest
import skimage.data
import torch
from torch import Tensor

from robustclip import purifiers
from robustclip.backbones import embedded_names
from robustclip.images import load_pixels
from robustclip.purifiers.networks import enlarged, one_shot, shrunk
from robustclip.seeds import draw_seeds, row_normal
from robustclip.types import Pixels

PURIFIERS = Path(purifiers.__file__).parent
KINDS: tuple[purifiers.NetworkKind, ...] = ("super_resolver", "denoiser")


@pytest.fixture(scope="module", params=["chelsea.png", "coffee.png"])
def photograph(request: pytest.FixtureRequest) -> Pixels:
    return load_pixels((Path(str(skimage.data.__file__)).parent / request.param).read_bytes(), 96)[None]


def error(found: Tensor, photograph: Pixels) -> float:
    return float((found.clamp(0, 1) - photograph).square().mean())


@pytest.mark.parametrize("sigma", [0.1, 0.25])
def test_the_denoiser_takes_most_of_the_noise(photograph: Pixels, sigma: float) -> None:
    denoiser = purifiers.open_denoiser("own", like=photograph, time=0.1)
    noisy = photograph + sigma * row_normal(draw_seeds(0, 1), tuple(photograph.shape[1:]), like=photograph)
    with torch.no_grad():
        assert error(one_shot(denoiser, noisy, sigma), photograph) < 0.25 * error(noisy, photograph)


def test_the_super_resolver_enlarges_better_than_bicubic(photograph: Pixels) -> None:
    network = purifiers.open_super_resolver("own", like=photograph)
    small = (shrunk(photograph, 48, 48).clamp(0, 1) * 255).round() / 255
    with torch.no_grad():
        assert error(network(small), photograph) < error(enlarged(small), photograph)


@pytest.mark.parametrize("kind", KINDS)
def test_the_card_names_the_digest(kind: purifiers.NetworkKind) -> None:
    assert f"`{purifiers.digest_of(kind, 'own')}`" in (PURIFIERS / "MODEL_CARD.md").read_text()


def test_all_that_is_embedded_weighs_what_it_may() -> None:
    weights = list(PURIFIERS.parent.rglob("*.safetensors"))
    assert len(weights) == len(KINDS) + len(embedded_names()) - 1  # `tiny` is drawn from a seed
    assert sum(path.stat().st_size for path in weights) < 60_000_000
