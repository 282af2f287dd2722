"""Super-resolvers of others, by spandrel: one of its own architectures, as small as it gets."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from robustclip.defenses import bind_chain, parse_defenses
from robustclip.errors import FeatureNotInstalled, PurifierRefused
from robustclip.models.classifier import TorchImageEncoder
from robustclip.models.clip import Clip
from robustclip.purifiers import load_purifier
from robustclip.seeds import draw_seeds

PIXELS = torch.rand(2, 3, 10, 13, generator=torch.Generator().manual_seed(0))


def write_compact(path: Path, *, scale: int, channels: int = 3) -> str:
    """Weights in the names of Real-ESRGAN's compact network: a convolution, PReLU, two more of them."""
    generator = torch.Generator().manual_seed(1)
    shapes = {"0": (4, channels), "2": (4, 4), "4": (channels * scale**2, 4)}
    tensors = {
        f"body.{index}.weight": 0.1 * torch.randn(*shape, 3, 3, generator=generator)
        for index, shape in shapes.items()
    }
    tensors |= {f"body.{index}.bias": torch.zeros(shape[0]) for index, shape in shapes.items()}
    tensors |= {f"body.{index}.weight": torch.full((4,), 0.2) for index in (1, 3)}
    save_file(tensors, path)
    return str(path)


@pytest.mark.parametrize("scale", [2, 4])
def test_a_network_that_spandrel_knows_enlarges_and_lets_gradients_through(
    scale: int, tmp_path: Path
) -> None:
    pytest.importorskip("spandrel")
    network = load_purifier("super_resolver", write_compact(tmp_path / "x.safetensors", scale=scale))
    pixels = PIXELS.clone().requires_grad_()
    out = network(pixels)
    assert out.shape == (2, 3, 10 * scale, 13 * scale)
    (gradient,) = torch.autograd.grad(out.sum(), pixels)
    assert gradient.abs().sum() > 0


def test_it_serves_as_a_defense_by_its_path(tiny: Clip, tmp_path: Path) -> None:
    pytest.importorskip("spandrel")
    weights = write_compact(tmp_path / "x.safetensors", scale=2)
    chain = bind_chain(
        parse_defenses([{"kind": "super_resolution", "weights": weights}]), TorchImageEncoder(tiny)
    )
    assert chain(PIXELS, draw_seeds(0, 2)).shape == PIXELS.shape


def test_files_that_enlarge_nothing_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("spandrel")
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(PurifierRefused, match="no network that spandrel knows"):
        load_purifier("super_resolver", str(tmp_path / "other.safetensors"))
    with pytest.raises(PurifierRefused, match="expected one that enlarges RGB pictures"):
        load_purifier("super_resolver", write_compact(tmp_path / "same.safetensors", scale=1))
    with pytest.raises(PurifierRefused, match="no network that spandrel knows"):
        load_purifier("super_resolver", str(tmp_path / "absent.safetensors"))


def test_without_spandrel_its_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(FeatureNotInstalled, match=r"robustclip\[spandrel\]"):
        load_purifier("super_resolver", str(tmp_path / "x.safetensors"))
