"""Early convolutions for a small image tower (Xiao et al. 2021, arXiv 2106.14881).

They replace open_clip's patch convolution and nothing else. The layers are timm's `tf_efficientnet_lite0`, so
its ImageNet weights fit: all of them but the classifier, or those up to a stride. A 1x1 convolution brings
their channels to the tower's width. At 112 pixels all of them give a grid of 4 x 4 (MODEL_CARD.md).
"""

from typing import Any, cast

import timm
import torch
from timm.models._efficientnet_blocks import DepthwiseSeparableConv, InvertedResidual
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

_NORMED: dict[type[nn.Module], tuple[tuple[str, str], ...]] = {
    DepthwiseSeparableConv: (("conv_dw", "bn1"), ("conv_pw", "bn2")),
    InvertedResidual: (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")),
}
WHOLE = "efficientnet_lite0_whole"  # `stem` in a backbone's JSON: with the head that the classifier reads
STAGES = {16: (5, 112), 32: (7, 320)}  # stride -> stages of the network, channels after them


class ConvStem(nn.Module):
    """[B, 3, S, S] normalised pixels -> [B, width, S/stride, S/stride], as `VisionTransformer.conv1`.

    whole: with the 1280 channels that the network's classifier reads, at stride 32.
    """

    def __init__(self, width: int, stride: int = 32, *, whole: bool = False) -> None:
        super().__init__()
        stages, self.channels = STAGES[stride]
        network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        self.conv_stem = network.get_submodule("conv_stem")
        self.bn1 = network.get_submodule("bn1")
        self.blocks = nn.Sequential(*list(network.get_submodule("blocks").children())[:stages])
        self.whole = whole
        if whole:
            self.conv_head, self.bn2 = network.get_submodule("conv_head"), network.get_submodule("bn2")
            self.channels = 1280
        self.project = nn.Conv2d(self.channels, width, kernel_size=1, bias=whole)
        for block in self.blocks.modules():
            if isinstance(convolution := getattr(block, "conv_dw", None), nn.Conv2d):
                cast(Any, block).conv_dw = _Depthwise(convolution)

    def convolve(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, channels, S/stride, S/stride]: the part with ImageNet weights."""
        features = self.blocks(self.bn1(self.conv_stem(images.contiguous(memory_format=torch.channels_last))))
        return self.bn2(self.conv_head(features)) if self.whole else features

    def forward(self, images: Tensor) -> Tensor:
        return self.project(self.convolve(images))

    def absorb_norms(self) -> None:
        """Fold the batch norms into the convolutions before them, for frozen weights in eval mode.

        The results are the same up to rounding, and a gradient pass of `mini-robust` is 1.15 to 1.2 times
        faster. It changes the state dict: compute the fingerprint and train before.
        """
        _absorb(self, "conv_stem", "bn1")
        if self.whole:
            _absorb(self, "conv_head", "bn2")
        for block in self.blocks.modules():
            for convolution, norm in _NORMED.get(type(block), ()):
                _absorb(block, convolution, norm)

    def load_imagenet(self, weights: dict[str, Tensor]) -> None:
        """Take the first layers of an EfficientNet-Lite0 state dict.

        Its names differ from timm's; order and shapes must be the same (else ValueError).
        """
        state = {
            name: tensor for name, tensor in self.state_dict().items() if not name.startswith("project.")
        }
        if len(weights) < len(state):
            raise ValueError(f"expected at least {len(state)} tensors, found {len(weights)}.")
        for (name, tensor), (source, value) in zip(state.items(), weights.items(), strict=False):
            if tensor.shape != value.shape:
                raise ValueError(
                    f"{source} has shape {list(value.shape)}, but {name} needs {list(tensor.shape)}."
                )
            with torch.no_grad():
                tensor.copy_(value)


class _Depthwise(nn.Module):
    """A depthwise convolution with TensorFlow's SAME padding, in float32 under autocast, too.

    At stride 2, SAME pads an even side by one more on the right than on the left. A zero before the kernel
    has the same effect, bit for bit, without a padded copy of the images: a gradient pass of `mini-robust` is
    1.04 to 1.09 times faster in bfloat16, 1.01 to 1.03 in float32.

    float32, because oneDNN's bfloat16 backward of depthwise kernels is slow: 78 ms against 5 ms for 144
    channels, 5x5, stride 2 (64 rows of 24x24, two cores), 102 ms against 6 ms with 672 channels.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.weight = convolution.weight
        self.bias: nn.Parameter | None = None
        self.stride = convolution.stride[0]

    def forward(self, images: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(images.device.type):
            return self._convolve(images)
        with torch.autocast(images.device.type, enabled=False):
            return self._convolve(images.float())

    def _convolve(self, images: Tensor) -> Tensor:
        weight, (channels, _, kernel, _) = self.weight, self.weight.shape
        if self.stride == 2 and images.shape[2] % 2 == 0:
            weight = torch.cat([weight.new_zeros(channels, 1, 1, kernel), weight], dim=2)
        if self.stride == 2 and images.shape[3] % 2 == 0:
            weight = torch.cat([weight.new_zeros(channels, 1, weight.shape[2], 1), weight], dim=3)
        return F.conv2d(images, weight, self.bias, stride=self.stride, padding=kernel // 2, groups=channels)


def _absorb(block: nn.Module, convolution: str, norm: str) -> None:
    """Only the norm's activation stays."""
    inner, outer = cast(Any, block.get_submodule(convolution)), cast(Any, block.get_submodule(norm))
    inner.weight, inner.bias = fuse_conv_bn_weights(
        inner.weight, None, outer.running_mean, outer.running_var, outer.eps, outer.weight, outer.bias
    )
    setattr(block, norm, outer.act)
