"""The convolutional stem: timm's network up to a stride, the same numbers, also under autocast."""

import pytest
import timm
import torch
from torch import Tensor, nn

from robustclip.backbones.stem import STAGES, ConvStem


@pytest.fixture(scope="module")
def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()


def stem_of(network: nn.Module, stride: int) -> ConvStem:
    stem = ConvStem(16, stride).eval()
    stem.load_imagenet(network.state_dict())
    return stem


def images(side: int = 64) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("side", [64, 72])  # 72 is halved to odd sides, where SAME pads otherwise
@pytest.mark.parametrize("stride", sorted(STAGES))
@torch.no_grad()
def test_it_computes_what_the_network_computes_up_to_its_stride(
    network: nn.Module, stride: int, side: int
) -> None:
    stages, channels = STAGES[stride]
    expected = network.get_submodule("bn1")(network.get_submodule("conv_stem")(images(side)))
    for block in list(network.get_submodule("blocks").children())[:stages]:
        expected = block(expected)
    found = stem_of(network, stride).convolve(images(side))
    assert found.shape == (2, channels, -(-side // stride), -(-side // stride))
    torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


def test_autocast_keeps_depthwise_gradients_close_to_float32(network: nn.Module) -> None:
    stem = stem_of(network, 16)
    gradients: list[Tensor] = []
    for autocast in (False, True):
        pixels = images().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            stem(pixels).float().square().sum().backward()
        gradients.append(torch.nan_to_num(pixels.grad) if pixels.grad is not None else torch.zeros(1))
    cosine = torch.nn.functional.cosine_similarity(gradients[0].flatten(), gradients[1].flatten(), dim=0)
    assert cosine > 0.9


@pytest.mark.parametrize("stride", sorted(STAGES))
def test_absorbed_norms_change_no_number(network: nn.Module, stride: int) -> None:
    generator = torch.Generator().manual_seed(2)
    stem = (
        stem_of(network, stride).requires_grad_(False).double()
    )  # a value on a kink of ReLU6 may fall to either side by float32's rounding
    for norm in (
        module for module in stem.modules() if isinstance(module, nn.BatchNorm2d)
    ):  # as after a training: no two channels alike
        for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
            assert tensor is not None
            tensor.data = 0.5 + torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
    found: list[tuple[Tensor, Tensor]] = []
    for absorb in (False, True):
        if absorb:
            stem.absorb_norms()
        pixels = images().double().requires_grad_()
        features = stem(pixels)
        found.append((features.detach(), torch.autograd.grad(features.sum(), pixels)[0]))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in stem.modules())
    for before, after in zip(*found, strict=True):
        torch.testing.assert_close(after, before, atol=1e-9 * float(before.abs().max()), rtol=0)


def test_weights_of_another_network_are_refused(network: nn.Module) -> None:
    weights = dict(network.state_dict())
    with pytest.raises(ValueError, match="at least"):
        ConvStem(16, 32).load_imagenet(dict(list(weights.items())[:20]))
    first = next(iter(weights))
    with pytest.raises(ValueError, match=r"needs \[32, 3, 3, 3\]"):
        ConvStem(16, 16).load_imagenet({**weights, first: torch.zeros(1)})
