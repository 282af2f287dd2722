"""Early convolutions for a small image tower (Xiao et al. 2021, arXiv 2106.14881): they replace open_clip's patch convolution, nothing after it.

The layers are timm's `tf_efficientnet_lite0` up to stride 16, so its ImageNet weights fit; a 1x1 convolution takes 112 channels to the tower's width.
"""

import timm
import torch
from torch import Tensor, nn

STEM_CHANNELS = 112
STEM_STRIDE = 16
_BLOCK_STAGES = 5  # of seven: the last of them that still has stride 16


class ConvStem(nn.Module):
    """[B, 3, S, S] normalised pixels -> [B, width, S/16, S/16], in the place of `VisionTransformer.conv1`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        self.conv_stem = network.get_submodule("conv_stem")
        self.bn1 = network.get_submodule("bn1")
        self.blocks = nn.Sequential(*list(network.get_submodule("blocks").children())[:_BLOCK_STAGES])
        self.project = nn.Conv2d(STEM_CHANNELS, width, kernel_size=1, bias=False)

    def convolve(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, 112, S/16, S/16]: the part that starts from ImageNet weights."""
        return self.blocks(self.bn1(self.conv_stem(images)))

    def forward(self, images: Tensor) -> Tensor:
        return self.project(self.convolve(images))

    def load_imagenet(self, weights: dict[str, Tensor]) -> None:
        """Take the first layers of an EfficientNet-Lite0 state dict: other names than timm's, the same order and shapes (else ValueError)."""
        own = {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("project.")}
        for (name, tensor), (source, value) in zip(own.items(), weights.items(), strict=False):
            if tensor.shape != value.shape:
                raise ValueError(f"{source} has shape {list(value.shape)}, but {name} needs {list(tensor.shape)}.")
            with torch.no_grad():
                tensor.copy_(value)
