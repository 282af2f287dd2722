from pathlib import Path

import pytest
import torch
from toys import gratings

from robustclip import purifiers
from robustclip.defenses import bind_chain, parse_defenses
from robustclip.defenses.super_resolution import SuperResolution
from robustclip.defenses.wavelet import Wavelet
from robustclip.errors import InvalidInput, PurifierRefused
from robustclip.models.classifier import TorchImageEncoder
from robustclip.models.clip import Clip
from robustclip.purifiers.networks import SuperResolver, SuperResolverShape, enlarged, shrunk
from robustclip.seeds import draw_seeds

PIXELS, _ = gratings(3, seed=101)
SEEDS = draw_seeds(101, 3)


def test_it_is_wavelet_then_network_then_back_to_size(tmp_path: Path) -> None:
    purifiers.write_purifier(SuperResolver(SuperResolverShape(width=8, blocks=1)), tmp_path / "bicubic", {})
    found = SuperResolution(sigma=0.05, weights=str(tmp_path / "bicubic.json"))(PIXELS, SEEDS)
    height, width = PIXELS.shape[-2:]
    expected = shrunk(enlarged(Wavelet(sigma=0.05)(PIXELS, SEEDS)).clamp(0, 1), height, width).clamp(0, 1)
    assert torch.allclose(found, expected, atol=1e-6)


def test_past_it_a_gradient_is_left_as_it_is() -> None:
    pixels = PIXELS.clone().requires_grad_()
    defense = SuperResolution(weights="tiny", backward="identity")
    (gradient,) = torch.autograd.grad(defense(pixels, SEEDS).sum(), pixels)
    assert torch.equal(gradient, torch.ones_like(pixels))
    assert torch.equal(defense(PIXELS, SEEDS), SuperResolution(weights="tiny")(PIXELS, SEEDS))


def test_missing_weights_are_refused_where_the_chain_is_bound(tiny: Clip, tmp_path: Path) -> None:
    chain = parse_defenses(["jpeg", {"kind": "super_resolution", "weights": str(tmp_path / "absent.json")}])
    with pytest.raises(PurifierRefused, match="can't be read") as refusal:
        bind_chain(chain, TorchImageEncoder(tiny))
    assert refusal.value.field == "defense/1/weights"


@pytest.mark.parametrize(
    ("change", "field"),
    [({"weights": "theirs"}, "weights"), ({"sigma": -1}, "sigma"), ({"backward": "none"}, "backward")],
)
def test_parameters_that_mean_nothing_are_refused_by_name(change: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        parse_defenses([{"kind": "super_resolution"} | change])
    assert refusal.value.field == f"defense/0/{field}"
