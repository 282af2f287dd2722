"""Weights of purifying networks: written and read back, found by name, refused with a reason."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from robustclip import purifiers
from robustclip.errors import PurifierRefused
from robustclip.purifiers.networks import Denoiser, DenoiserShape, SuperResolver, SuperResolverShape

LIKE = torch.empty(0)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    purifiers.write_purifier(
        Denoiser(DenoiserShape(widths=(8,), middle=0, max_time=0.3)),
        tmp_path / "mine",
        {"recipe": {"seed": 0}},
    )
    return tmp_path / "mine.json"


@pytest.mark.parametrize("kind", ["super_resolver", "denoiser"])
def test_what_is_written_is_read_back_to_sixteen_bits(kind: purifiers.NetworkKind, tmp_path: Path) -> None:
    network = purifiers.load_purifier(kind, "tiny")
    assert isinstance(network, SuperResolver | Denoiser)
    purifiers.write_purifier(network, tmp_path / "copy", {"made": "for a test"})
    read = purifiers.load_purifier(kind, str(tmp_path / "copy.json"))
    for name, tensor in network.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor.half().float()), name
    assert not any(parameter.requires_grad for parameter in read.parameters())
    assert json.loads((tmp_path / "copy.json").read_text())["made"] == "for a test"
    assert purifiers.digest_of(kind, str(tmp_path / "copy.json")) != purifiers.digest_of(kind, "tiny")


def test_drawing_a_network_leaves_the_global_generator_alone(written: Path) -> None:
    state = torch.random.get_rng_state()
    for kind, weights in (("super_resolver", "tiny"), ("denoiser", str(written))):
        purifiers.load_purifier(kind, weights)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_shipped_networks_together_fit_twenty_megabytes() -> None:
    tensors = [
        parameter.numel()
        for shape in (SuperResolverShape(), DenoiserShape())
        for parameter in purifiers.build_network(shape).parameters()
    ]
    assert 2 * sum(tensors) < 20e6


def test_weights_that_do_not_ship_are_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(purifiers, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(
        PurifierRefused, match=r"weights: no weights of a super-resolver ship .* `robustclip train-purifiers`"
    ):
        purifiers.load_purifier("super_resolver", "own")


def test_whoever_may_read_the_description_may_read_the_weights(written: Path) -> None:
    assert written.with_suffix(".safetensors").stat().st_mode == written.stat().st_mode


def test_files_that_are_no_purifier_are_refused_with_the_reason(written: Path, tmp_path: Path) -> None:
    with pytest.raises(PurifierRefused, match="is a denoiser, not a super_resolver"):
        purifiers.load_purifier("super_resolver", str(written))
    with pytest.raises(PurifierRefused, match="only super-resolvers are read from bare weights"):
        purifiers.load_purifier("denoiser", str(tmp_path / "x.safetensors"))
    with pytest.raises(PurifierRefused, match="can't be read as a denoiser"):
        purifiers.load_purifier("denoiser", str(tmp_path / "absent.json"))
    weights = written.with_suffix(".safetensors")
    tensors = load_file(weights)
    save_file(tensors | {"exit.bias": torch.full_like(tensors["exit.bias"], torch.nan)}, weights)
    with pytest.raises(PurifierRefused, match=r"exit\.bias is not finite"):
        purifiers.load_purifier("denoiser", str(written))
    save_file({name: tensor for name, tensor in tensors.items() if name != "exit.bias"}, weights)
    with pytest.raises(PurifierRefused, match="can't be read as a denoiser"):
        purifiers.load_purifier("denoiser", str(written))
    written.write_text('{"network": {"kind": "denoiser", "widths": [7]}}')
    with pytest.raises(PurifierRefused, match="can't be read as a denoiser"):
        purifiers.load_purifier("denoiser", str(written))


def test_more_noise_than_it_was_trained_for_is_refused(written: Path) -> None:
    assert purifiers.open_denoiser(str(written), like=LIKE, time=0.3)
    with pytest.raises(
        PurifierRefused, match=r"trained up to time 0.3, noise of 0.6\d* in pixel units, but time 0.31"
    ):
        purifiers.open_denoiser(str(written), like=LIKE, time=0.31)
