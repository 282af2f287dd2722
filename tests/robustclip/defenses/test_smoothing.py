"""The noise of randomized smoothing as a link of a chain."""

import math
from pathlib import Path

import pytest
import torch

from robustclip.defenses import bind_chain, parse_defenses
from robustclip.defenses.smoothing import Smoothing
from robustclip.errors import InvalidInput, PurifierRefused
from robustclip.models.classifier import TorchImageEncoder
from robustclip.models.clip import Clip
from robustclip.seeds import draw_seeds


def test_the_noise_is_gaussian_of_the_asked_size() -> None:
    pixels = torch.full((64, 3, 16, 16), 0.5)
    noise = Smoothing(sigma=0.05)(pixels, draw_seeds(0, 64)) - pixels
    count = noise.numel()
    assert abs(float(noise.mean())) < 4 * 0.05 / math.sqrt(count)
    assert float(noise.std()) == pytest.approx(0.05, rel=4 / math.sqrt(2 * count))
    assert float((noise.abs() < 0.05).float().mean()) == pytest.approx(math.erf(1 / math.sqrt(2)), abs=0.01)


def test_a_denoiser_that_is_not_there_is_refused_where_it_is_named(tiny: Clip, tmp_path: Path) -> None:
    chain = parse_defenses([{"kind": "smoothing", "denoise": str(tmp_path / "absent.json")}])
    with pytest.raises(PurifierRefused, match="can't be read as a denoiser") as refusal:
        bind_chain(chain, TorchImageEncoder(tiny))
    assert refusal.value.field == "defense/0/denoise"


@pytest.mark.parametrize(
    "chain", ["jpeg,smoothing", "smoothing,smoothing", "smoothing:0.1,jpeg,smoothing:0.2"]
)
def test_smoothing_behind_another_link_is_refused_by_its_place(chain: str) -> None:
    with pytest.raises(InvalidInput, match="behind") as refusal:
        parse_defenses(chain)
    assert refusal.value.field == f"defense/{chain.count(',')}"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        *[({"sigma": sigma}, "sigma") for sigma in (0, -1, math.nan, math.inf, 5, "much")],
        *[({"votes": votes}, "votes") for votes in (0, -1, 1.5, 10_001, "all")],
        *[({"alpha": alpha}, "alpha") for alpha in (0, 0.5, 1, math.nan)],
        ({"denoiser": "jpeg"}, "denoiser"),
    ],
)
def test_parameters_that_mean_nothing_are_refused_by_name(change: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        parse_defenses([{"kind": "smoothing"} | change])
    assert refusal.value.field == f"defense/0/{field}"
